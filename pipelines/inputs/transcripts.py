"""What is said in the utterances of a token dataset: its own column `text`, or a file beside it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines import storage
from pipelines.datasets.part_file import part_files
from pipelines.inputs.sources import AUDIO_EXTENSIONS
from tokenizer import DatasetError

TEXT_COLUMN = "text"
_NAMES = ("id", "member", "audio_filepath", "path")  # what a row may call its utterance by, the surest first
_TEXTS = ("text", "transcript")


class TranscriptFile:
    """Transcripts of a .jsonl file, found by the ids of utterances.

    A row names an utterance by `id`, or by the path of its audio (`member` of a tar shard, `audio_filepath` or `path`),
    and says what is said in `text` or `transcript`. Rows without either are passed over. Of two paths the shorter one
    may lack folders in front, and either may lack its extension: ids are paths below whatever was tokenized.

    Args:
        location: local path or s3://.

    Raises:
        DatasetError: it cannot be read, or a row is wrong.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = storage.absolute(location)
        try:
            self._content = storage.read_bytes(self.location)
        except OSError as error:
            raise DatasetError(f"{location}: cannot be read: {error}") from error
        self._found: dict[str, str] = {}  # which utterance each row was for

    @property
    def sha256(self) -> str:
        """Identity of what it says."""
        return hashlib.sha256(self._content).hexdigest()

    def require_found(self, datasets: Sequence[str], example: str) -> None:
        """Raise DatasetError unless some transcript was found; `example` is the id of an utterance."""
        if not self._texts:
            raise DatasetError(f"{self.location}: no row has a {' or '.join(_TEXTS)}")
        if not self._found:
            raise DatasetError(
                f"{self.location}: none of its transcripts is of an utterance in {', '.join(datasets)}: "
                f"ids are like {example!r} there, and like {next(iter(self._texts))!r} in the file"
            )

    def find(self, name: str) -> str | None:
        """The transcript of the utterance with this id; None where there is none.

        Raises:
            DatasetError: several rows could be meant and say different things, or several utterances by one row.
        """
        meant = [name] if name in self._texts else self._alike(name)
        if len({self._texts[other] for other in meant}) > 1:
            raise DatasetError(f"{self.location}: utterance {name!r} may be {meant[0]!r} or {meant[1]!r}")
        if not meant:
            return None
        if self._found.setdefault(meant[0], name) != name:
            raise DatasetError(f"{self.location}: {meant[0]!r} may be {self._found[meant[0]]!r} or {name!r}")
        return self._texts[meant[0]]

    def _alike(self, name: str) -> list[str]:
        path = _without_extension(name)
        others = self._by_last_name.get(path.rpartition("/")[2], [])
        return [other for other in others if _ends_alike(path, _without_extension(other))]

    @functools.cached_property
    def _texts(self) -> dict[str, str]:
        texts: dict[str, str] = {}
        for number, line in enumerate(self._content.splitlines(), 1):
            if not line.strip():
                continue
            try:
                name, text = _name_and_text(json.loads(line))
            except (ValueError, TypeError) as error:
                raise DatasetError(f"{self.location}, line {number}: {error}") from error
            if text and texts.setdefault(name, text) != text:
                raise DatasetError(f"{self.location}, line {number}: a second and different transcript of {name!r}")
        return texts

    @functools.cached_property
    def _by_last_name(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in self._texts:
            names.setdefault(_without_extension(name).rpartition("/")[2], []).append(name)
        return names


class TextSource:
    """Transcripts of utterances from a file, and where that has none from their datasets' column.

    Args:
        file: None for the column alone.
    """

    def __init__(self, file: TranscriptFile | None = None) -> None:
        self._file, self._any = file, False

    @property
    def identity(self) -> str:
        """Changes with what the file says."""
        return "" if self._file is None else self._file.sha256

    def find(self, name: str, stored: str | None) -> str | None:
        """What is said in an utterance of this id, whose dataset says that it is `stored`; None where nobody knows."""
        text = (self._file and self._file.find(name)) or stored
        self._any = self._any or text is not None
        return text

    def require_found(self, datasets: Sequence[str], example: str) -> None:
        """Raise DatasetError unless there were transcripts, of the file too; `example` is the id of an utterance."""
        if self._file is not None:
            self._file.require_found(datasets, example)
        elif not self._any:
            raise DatasetError(
                f"{', '.join(datasets)}: nothing says what is said: there is no text in a column {TEXT_COLUMN!r}; "
                "name a file of transcripts"
            )


def stored_texts(dataset: str) -> Iterator[str | None]:
    """The column `text` of a dataset, row after row as `read_utterances` gives them; None where nothing is said.

    Raises:
        DatasetError: a part is damaged, or the column holds something else than text.
    """
    for file in part_files(dataset):
        part = file.open()
        column: list[Any] = [None] * part.metadata.num_rows
        if TEXT_COLUMN in part.schema.names:
            column = part.read([TEXT_COLUMN]).column(0).to_pylist()
        for text in column:
            if not isinstance(text, str | None):
                raise DatasetError(f"{file.uri}: column {TEXT_COLUMN!r} holds {text!r:.60}")
            yield text or None


def _name_and_text(row: Any) -> tuple[str, str]:
    if not isinstance(row, Mapping):
        raise TypeError(f"a row is a JSON object, not {row!r:.60}")
    name = next((row[key] for key in _NAMES if row.get(key)), None)
    text = next((row[key] for key in _TEXTS if row.get(key)), "")
    if not isinstance(name, str) or not isinstance(text, str):
        raise TypeError(f"a row names its utterance ({', '.join(_NAMES)}) and has a {' or '.join(_TEXTS)}")
    return name, text


def _without_extension(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in AUDIO_EXTENSIONS else str(path)


def _ends_alike(one: str, other: str) -> bool:
    """Whether one path is the other, or its end."""
    shorter, longer = sorted((one, other), key=len)
    return f"/{longer}".endswith(f"/{shorter}")
