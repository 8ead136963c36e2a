"""Codes as JSON, level by level: no single call into the parser is long, so other threads keep their turns.

Python's parser holds the interpreter for as long as it works: a body of 30 MiB at once would stop every stream of the
process for half a second, and take eight times its size in memory.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipelines.serving.codes_body import MAX_SCALES, CodesBody, CodesLimits, stacked_levels, whole_numbers
from pipelines.serving.service_errors import bad_request, invalid_argument, too_large
from tokenizer import CodesError

_MAX_KEYS = 32
_CHARS_EACH = 24  # of a number in a list: indented by some editor, one to a line
_SPACE = re.compile(r"[ \t\n\r]*")


def read_json_codes(body: bytes, limits: CodesLimits) -> CodesBody:
    """Read `{"codes": [[...], ...], ...}`.

    Raises:
        RequestError: not JSON, not such an object, or too long.
        CodesError: codes that are not K lists of T whole numbers.
    """
    try:
        return _ObjectReader(body.decode(), limits).read()
    except RecursionError as error:
        raise bad_request("the JSON is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, bytes that are not UTF-8, numbers of thousands of digits
        raise bad_request(f"the body is not JSON: {error}") from error


def write_json_codes(codes: NDArray[np.integer], fields: dict[str, Any]) -> bytes:
    """Fields and, at the end, codes [K, T]; read back by any JSON parser."""
    levels = ",".join(json.dumps(level.tolist(), separators=(",", ":")) for level in codes)
    return f'{json.dumps(fields)[:-1]}, "codes": [{levels}]}}'.encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_PARSER = json.JSONDecoder(parse_constant=_refuse_constant)


class _ObjectReader:
    """Goes through the text of one object."""

    def __init__(self, text: str, limits: CodesLimits) -> None:
        self._text, self._limits, self._at = text, limits, 0

    def read(self) -> CodesBody:
        codes: NDArray[np.integer] | None = None
        options: dict[str, Any] = {}
        self._expect("{")
        while not self._found("}"):
            if len(options) > _MAX_KEYS:
                raise bad_request(f"the JSON object has more than {_MAX_KEYS} keys")
            key = self._key()
            self._expect(":")
            if key in options or (key == "codes" and codes is not None):
                raise bad_request(f"the key {key[:40]!r} stands twice in the JSON object")
            if key == "codes":
                codes = self._codes()
            else:
                options[key] = self._option(key)
            if not self._found(","):
                self._expect("}")
                break
        self._skip_space()
        if self._at != len(self._text):
            raise ValueError(f"something follows the object, at character {self._at}")
        if codes is None:
            raise invalid_argument("codes: a list of levels is needed")
        return CodesBody(codes, options)

    def _codes(self) -> NDArray[np.integer]:
        levels: list[NDArray[np.integer]] = []
        self._expect("[", "codes are K lists of T whole numbers")
        while not self._found("]"):
            self._limits.check_levels(len(levels) + 1)
            values = self._flat_list(self._limits.max_frames, "codes are K lists of T whole numbers")
            self._limits.check_frames(len(values))
            levels.append(whole_numbers(values, len(levels)))
            if not self._found(","):
                self._expect("]")
                break
        return stacked_levels(levels, self._limits)

    def _option(self, key: str) -> Any:
        self._skip_space()
        first = self._text[self._at : self._at + 1]
        if first == "[":
            return self._flat_list(MAX_SCALES, f"{key[:40]} is one value, or a list of numbers")
        if first == "{":
            raise invalid_argument(f"{key[:40]}: an object is no value of an option")
        return self._value()

    def _flat_list(self, max_items: int, otherwise: str) -> list[Any]:
        """A list without lists in it; its end is looked for before anything of it is read."""
        self._skip_space()
        if not self._text.startswith("[", self._at):
            raise CodesError(otherwise)
        max_chars = max_items * _CHARS_EACH + 64
        end = self._text.find("]", self._at, self._at + max_chars)
        if end < 0:
            if len(self._text) - self._at > max_chars:
                raise too_large(f"a list at character {self._at} is too long: {max_items} numbers are allowed")
            raise ValueError(f"the list at character {self._at} has no end")
        content = self._text[self._at : end + 1]
        if "[" in content[1:] or "{" in content:
            raise CodesError(otherwise)
        values = _PARSER.decode(content)
        self._at = end + 1
        return list(values)

    def _key(self) -> str:
        self._skip_space()
        if not self._text.startswith('"', self._at):
            raise ValueError(f"a key in double quotes is missing at character {self._at}")
        return str(self._value())

    def _value(self) -> Any:
        self._skip_space()
        value, self._at = _PARSER.raw_decode(self._text, self._at)
        return value

    def _expect(self, mark: str, otherwise: str | None = None) -> None:
        if not self._found(mark):
            if otherwise is not None:
                raise CodesError(otherwise)
            raise ValueError(f"{mark!r} is missing at character {self._at}")

    def _found(self, mark: str) -> bool:
        self._skip_space()
        if not self._text.startswith(mark, self._at):
            return False
        self._at += 1
        return True

    def _skip_space(self) -> None:
        space = _SPACE.match(self._text, self._at)
        self._at = self._at if space is None else space.end()
