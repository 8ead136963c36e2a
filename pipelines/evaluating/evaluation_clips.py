"""The clips that a codec is judged on: audio files of a folder, or stretches of tar shards that a manifest names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from pipelines import storage
from pipelines.datasets.listing import SourceFile, files_of
from pipelines.inputs.source_reader import SourceReader
from pipelines.inputs.sources import list_source
from tokenizer import AudioError, DatasetError, mix_channels, read_audio

Item = TypeVar("Item")


EvaluationClip = SourceFile  # its id: path below the folder, or the manifest's `member`


def list_clips(source: str | Path, *, split: str = "valid", kind: str | None = None) -> list[EvaluationClip]:
    """Clips in a fixed order.

    Args:
        source: a directory, file or glob, local or s3://; or a .jsonl manifest whose rows have `shard` (a path from
            the manifest's folder), `offset` and `bytes`, perhaps `member`, `split` and `kind`.
        split: rows of a manifest with another one are left out; rows without one belong to every split.
        kind: only rows of this one, such as "speech"; None for all. Folders have none.

    Raises:
        DatasetError: nothing to judge on, or a manifest that cannot be read.
        ValueError: a kind is asked of a folder.
    """
    uri = storage.absolute(source)
    if not uri.endswith(".jsonl"):
        if kind is not None:
            raise ValueError(f"{source}: kind {kind!r} can only be chosen from a .jsonl manifest")
        return files_of(list_source(source))
    clips = list(_manifest_clips(uri, split, kind))
    if not clips:
        of_kind = "" if kind is None else f" and kind {kind!r}"
        raise DatasetError(f"{source}: no clips with split {split!r}{of_kind}")
    return clips


def read_clip(clip: EvaluationClip, max_seconds: float) -> tuple[Tensor, int]:
    """The beginning of a clip as one channel [1, S], and its sample rate.

    Raises:
        AudioError: not audio, or no samples in it.
        OSError: out of reach.
    """
    with SourceReader() as reader, reader.open(clip) as stream:
        waveform, sample_rate = read_audio(stream)
    seconds = min(max_seconds, math.inf if clip.duration_s is None else clip.duration_s)
    start = round(clip.start_s * sample_rate)
    waveform = mix_channels(waveform, 1)[:, start : start + round(seconds * sample_rate)]
    if waveform.shape[-1] == 0:
        raise AudioError(f"{clip.id}: no samples")
    return waveform, sample_rate


def spread(items: Sequence[Item], count: int | None) -> list[Item]:
    """At most so many, the first of each equal part: not one speaker alone fills a small number."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _manifest_clips(uri: str, split: str, kind: str | None) -> Iterator[EvaluationClip]:
    try:
        with storage.open_input(uri) as stream:
            lines = stream.read().decode("utf-8").splitlines()
    except FileNotFoundError as error:
        raise DatasetError(f"{uri}: no such file") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{uri}: not UTF-8: {error}") from error
    folder = uri.rpartition("/")[0]
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            if row.get("split", split) == split and kind in (None, row.get("kind")):
                place = f"{row['shard']}@{row['offset']}"
                name = str(row.get("member", place))
                name = place if name in seen else name  # shards may name their members alike
                seen.add(name)
                shard = storage.join(folder, row["shard"])
                yield EvaluationClip(name, shard, int(row["bytes"]), member=name, offset=int(row["offset"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{uri}, line {number}: {error!r}") from error
