"""Original audio of a dataset's rows, read again: found through the plan, in whatever file, archive or table it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipelines import storage
from pipelines.datasets.listing import LISTING_SCHEMA, SourceFile, files_of
from pipelines.inputs.segment_reader import read_segments
from pipelines.inputs.source_reader import SourceReader
from tokenizer import CodecSpec, DatasetError

_MARGIN_S = 1  # read before and after: resampling hears that far, and a file that has become longer shows


class OriginalReader:
    """Reads what rows were made from.

    Args:
        dataset: whose rows they are.
        rows: with `id` and `uri`, and in datasets that have it, `input_id`. Those whose inputs are not in the plan (of
            a dataset written before plans said where inputs are) are taken for plain files.

    Raises:
        DatasetError: plan.parquet is damaged.
    """

    def __init__(self, dataset: str | Path, rows: Collection[Mapping[str, Any]]) -> None:
        inputs = {_input_id(row) for row in rows}
        self._files = _find_inputs(storage.join(storage.absolute(dataset), "plan.parquet"), inputs)

    def read(self, row: Mapping[str, Any], spec: CodecSpec, num_samples: int) -> tuple[Tensor | None, str | None]:
        """The first samples of a row's audio as the codec heard it, [C, num_samples], or None and the reason.

        Args:
            row: one of those given; also with `num_samples`, and `start_sample` where inputs were cut.
            spec: of the codec.
            num_samples: at most those of the row.
        """
        file = self._files.get(_input_id(row)) or SourceFile(row["id"], row["uri"])
        place = file.uri if file.member is None else f"{file.uri}, member {file.member}"
        try:
            waveform = self._read(file, int(row.get("start_sample") or 0), spec, num_samples)
        except Exception as error:  # noqa: BLE001 - a file out of reach (S3 has its own errors) is a line in the report
            return None, f"{place} cannot be read any more: {getattr(error, 'strerror', None) or error}"
        ends = _input_id(row) == row["id"] and num_samples == row["num_samples"]
        if waveform.shape[-1] < num_samples or (ends and waveform.shape[-1] > num_samples):
            return None, f"{place} has changed: it is not as long as it was when it was tokenized"
        return waveform[:, :num_samples], None

    def _read(self, file: SourceFile, start_sample: int, spec: CodecSpec, num_samples: int) -> Tensor:
        """From a sample on, so many and some more where there are more."""
        # Whole seconds: at these, samples of the file and of the resampled waveform coincide.
        skipped_s = max(0, start_sample // spec.sample_rate - _MARGIN_S)
        start = start_sample - skipped_s * spec.sample_rate
        wanted_s = (start + num_samples) / spec.sample_rate + _MARGIN_S
        left_s = wanted_s if file.duration_s is None else min(wanted_s, file.duration_s - skipped_s)
        with SourceReader() as reader, reader.open(file) as stream:
            read = read_segments(stream, spec, start_s=file.start_s + skipped_s, duration_s=left_s)
        return torch.from_numpy(read.segments[0].waveform)[:, start:]


def _input_id(row: Mapping[str, Any]) -> str:
    return str(row.get("input_id") or row["id"])


def _find_inputs(plan_uri: str, ids: Collection[str]) -> dict[str, SourceFile]:
    """Where these inputs are, by id; a plan of millions is read some rows at a time."""
    wanted = pa.array(sorted(ids), pa.string())
    if not ids or storage.find_file(plan_uri) is None:
        return {}
    found: list[pa.RecordBatch] = []
    try:
        with storage.open_input(plan_uri) as stream:
            plan = pq.ParquetFile(stream, page_checksum_verification=True)
            if set(LISTING_SCHEMA.names) <= set(plan.schema_arrow.names):
                batches = plan.iter_batches(columns=LISTING_SCHEMA.names)
                found = [batch.filter(pc.is_in(batch.column("id"), value_set=wanted)) for batch in batches]
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{plan_uri}: damaged, or cannot be read: {error}") from error
    return {file.id: file for file in files_of(pa.Table.from_batches(found))} if found else {}
