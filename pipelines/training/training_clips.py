"""Which clips there are to train on: audio files of folders, members of tar shards, and rows of manifests."""

from __future__ import annotations

import glob
import json
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.inputs.sources import AUDIO_EXTENSIONS
from tokenizer.errors import DatasetError

DEFAULT_KIND = "speech"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Where one clip lies, and what is known of it."""

    path: str  # a file, or the tar shard that holds one
    offset: int = 0  # bytes before the audio file in `path`
    size: int | None = None  # bytes of the audio file; None: up to the end of `path`
    begin_s: float = 0.0  # where the clip starts in the audio file
    duration_s: float | None = None  # the clip ends there, or with its file; None: not known yet
    kind: str = DEFAULT_KIND  # "music", "speech", ...

    @property
    def name(self) -> str:
        """For messages."""
        where = f" at byte {self.offset}" if self.offset else ""
        return f"{self.path}{where}" + (f" from {self.begin_s:g} s" if self.begin_s else "")


def list_clips(data: list[Path], split: str = "train") -> list[Clip]:
    """Every clip of the given data, in an order that depends on names only.

    Args:
        data: any of
            - a folder: every audio file and every tar shard below it; or, where it holds a manifest.jsonl, the clips
              of that, so that nobody trains on the validation clips of a data set by naming its folder;
            - an audio file, a tar shard (its members are read in place), or a pattern of any of these;
            - a .jsonl manifest. A row names either a stretch of a tar shard (`shard`, `offset`, `bytes`) or a file
              (`audio_filepath` or `path`), of which `offset` and `duration` in seconds cut out a part, as in NeMo.
              Optional: `duration_s`, `split`, `kind`. Paths are relative to the manifest.
        split: rows of other splits are left out. What has no split, has this one.

    Raises:
        DatasetError: nothing to train on, a shard that is no tar file, a manifest row that is wrong.
    """
    clips = [clip for source in data for path in _matching(source) for clip in _clips_of(path, split)]
    if not clips:
        raise DatasetError(f"no audio to train on in {', '.join(map(str, data))} (split {split!r})")
    return clips


def _matching(source: Path) -> list[Path]:
    if source.exists():
        return [source]
    found = sorted(glob.glob(str(source), recursive=True)) if glob.has_magic(str(source)) else []  # noqa: PTH207 - absolute patterns
    if not found:
        raise DatasetError(f"{source}: neither a folder, nor a .jsonl manifest, a tar shard or an audio file")
    return [Path(path) for path in found]


def _clips_of(source: Path, split: str) -> Iterator[Clip]:
    if source.is_dir():
        manifest = source / "manifest.jsonl"
        if manifest.is_file():
            yield from _manifest_clips(manifest, split)
            return
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in (*AUDIO_EXTENSIONS, ".tar") and not path.name.startswith(".") and path.is_file():
                yield from _clips_of(path, split)
    elif source.suffix == ".jsonl":
        yield from _manifest_clips(source, split)
    elif source.suffix.lower() == ".tar":
        yield from _shard_clips(source)
    elif source.suffix.lower() in AUDIO_EXTENSIONS:
        yield Clip(path=str(source), size=source.stat().st_size)
    else:
        raise DatasetError(f"{source}: neither a folder, nor a .jsonl manifest, a tar shard or an audio file")


def _shard_clips(shard: Path) -> Iterator[Clip]:
    """One pass over the headers of a shard; what is compressed has no members to read in place."""
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if member.isreg() and name.suffix.lower() in AUDIO_EXTENSIONS and not name.name.startswith("."):
                    yield Clip(path=str(shard), offset=member.offset_data, size=member.size)
    except (tarfile.TarError, OSError) as error:
        raise DatasetError(f"{shard}: not an uncompressed tar file, or damaged: {error}") from error


def _manifest_clips(manifest: Path, split: str) -> Iterator[Clip]:
    with manifest.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TypeError(f"a row is a JSON object, not {row!r}")  # noqa: TRY301 - told with its line
                if (row.get("split") or split) == split:
                    yield _row_clip(row, manifest.parent)
            except KeyError as error:
                raise DatasetError(f"{manifest}, line {number}: lacks {error.args[0]!r}") from error
            except (ValueError, TypeError) as error:
                raise DatasetError(f"{manifest}, line {number}: {error}") from error


def _row_clip(row: dict[str, Any], folder: Path) -> Clip:
    seconds = row.get("duration_s", row.get("duration"))
    duration_s = None if seconds is None else _number(seconds, "duration")
    if duration_s == 0:
        raise ValueError("a duration of 0 seconds")
    kind = str(row.get("kind") or DEFAULT_KIND)
    if "shard" in row:
        return Clip(
            path=str(folder / row["shard"]),
            offset=_integer(row["offset"], "offset"),
            size=_integer(row["bytes"], "bytes"),
            duration_s=duration_s,
            kind=kind,
        )
    if "path" not in row and "audio_filepath" not in row:
        raise ValueError("names no audio: neither 'shard' nor 'audio_filepath' nor 'path'")
    path = folder / (row["audio_filepath"] if "audio_filepath" in row else row["path"])
    begin_s = _number(row.get("offset") or 0.0, "offset")
    return Clip(path=str(path), begin_s=begin_s, duration_s=duration_s, kind=kind)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value!r}, not a number of 0 or more")
    return value


def _integer(value: Any, name: str) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}, not a whole number of bytes")  # noqa: TRY004 - as for other wrong values
    return int(_number(value, name))
