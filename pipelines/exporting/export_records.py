"""Records of an export: after each shard one small file says what it holds and which row comes next."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any

from pipelines import storage
from tokenizer import DatasetError

FOLDER = "records"
_NAME = re.compile(r"(\d{6})\.json")


@dataclass(slots=True)
class Totals:
    """What an export has done so far."""

    rows: int = 0  # read, those that gave nothing too
    sequences: int = 0
    tokens: int = 0  # ids
    without_frames: int = 0  # rows skipped because of that
    without_text: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """The state of an export behind one of its shards."""

    number: int  # of the shard
    files: dict[str, dict[str, Any]]  # by name: what was written
    next_part: int  # number of the dataset's part that the next row is in, its parts in order
    next_row: int  # of that part
    totals: Totals = field(default_factory=Totals)

    def commit(self, out: str) -> None:
        """Write it in one atomic step."""
        content = json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"
        storage.commit(storage.join(out, FOLDER, f"{self.number:06d}.json"), content.encode())


def last_record(out: str) -> ExportRecord | None:
    """The record of the last shard of an export; None where no shard is done.

    Raises:
        DatasetError: it is damaged, or one before it or its file is gone.
    """
    names = [name for name in storage.list_names(storage.join(out, FOLDER)) if _NAME.fullmatch(name)]
    for number, name in enumerate(names):
        if int(name.split(".")[0]) != number:
            raise DatasetError(f"{out}: {FOLDER}/{number:06d}.json is gone: export into another directory")
    if not names:
        return None
    uri = storage.join(out, FOLDER, names[-1])
    try:
        plain = json.loads(storage.read_bytes(uri))
        return ExportRecord(**{**plain, "totals": Totals(**plain["totals"])})
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{uri} is damaged: {type(error).__name__}: {error}") from error
