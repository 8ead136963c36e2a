"""The export of a token dataset for language models: its rows in order, as sequences of ids, in files for trainers.

What is written follows from the dataset and the settings alone. An export that was killed goes on behind its last
shard and ends with the very same bytes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines import storage
from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.exporting.export_card import FILE_NAME, TokenCard, make_card, read_token_card
from pipelines.exporting.export_parquet import ParquetShard
from pipelines.exporting.export_records import ExportRecord, Totals, last_record
from pipelines.exporting.export_rows import Row, RowReader
from pipelines.exporting.export_sequences import SequenceMaker, SequenceSettings, Skipped
from pipelines.exporting.export_shards import ExportedSequence, ShardedFiles, Target
from pipelines.exporting.export_tar import TarShard
from pipelines.exporting.megatron_files import MegatronFiles
from pipelines.progress import Progress
from tokenizer import DatasetError

FORMATS = ("parquet", "webdataset", "megatron")
SHARD_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What an export holds, and what this call had to do for it."""

    out: str
    card: TokenCard
    totals: Totals
    num_new_tokens: int  # of this call
    wall_seconds: float


def export_tokens(
    dataset: str | Path,
    out: str | Path,
    settings: SequenceSettings | None = None,
    *,
    file_format: str = "parquet",
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
) -> ExportSummary:
    """Write a token dataset as sequences of ids, with tokens.json beside them, which says what the ids mean.

    Args:
        dataset: a local directory or s3://.
        out: where to write: a directory that is new, empty, or has an unfinished export of the same; or s3://, where
            the format is not megatron.
        settings: what each row becomes; None for the default ones.
        file_format: parquet, webdataset or megatron.
        shard_bytes: of ids in a file of Parquet or tar, which is put together in memory; of megatron, how much may
            have to be done again after a crash.
        progress: shown on stderr.

    Raises:
        ValueError: arguments that there are not, or that do not fit the dataset.
        DatasetError: the dataset is damaged, nothing is in it to export, a row has no text, or `out` holds something
            else.
        ImportError: text without the package `tokenizers`.
    """
    started, settings = time.monotonic(), settings or SequenceSettings()
    dataset, out = storage.absolute(dataset), storage.absolute(out)
    _check_format(file_format, shard_bytes, settings.layout, out)
    info = read_dataset_info(dataset)
    maker = SequenceMaker(settings, info)
    reader = RowReader(dataset, maker.num_codebooks, maker.text_column)
    files = {"format": file_format, "dtype": maker.dtype.name, "shard_bytes": shard_bytes}
    card = make_card(maker, info, dataset, files)
    record = last_record(out)
    totals = record.totals if record else Totals()
    done_before = totals.tokens
    finished = _begin(out, card, begun=record is not None)
    if finished is not None:
        return ExportSummary(out, finished, Totals(**(finished.totals or {})), 0, time.monotonic() - started)
    with Progress("exporting", shown=progress) as shown:
        target = _open_target(out, card, maker)
        target.resume(record)
        _Run(reader, maker, target, out, shard_bytes, shown).run(record, totals)
    card = dataclasses.replace(card, totals=dataclasses.asdict(totals))
    storage.commit(storage.join(out, FILE_NAME), card.to_json().encode())
    return ExportSummary(out, card, totals, totals.tokens - done_before, time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class _Run:
    """One call's share of an export: from the last record to the end."""

    reader: RowReader
    maker: SequenceMaker
    target: Target
    out: str
    shard_bytes: int
    shown: Progress

    def run(self, record: ExportRecord | None, totals: Totals) -> None:
        """Export what is left, and count it in `totals`."""
        number, pending, name = 0 if record is None else record.number + 1, 0, ""
        for part, row_number, row in self._rows(record):
            name = row.id
            pending += self._add(row, totals)
            if pending >= self.shard_bytes:
                self._commit(number, (part, row_number + 1), totals)
                number, pending = number + 1, 0
        if record is None:
            self.maker.require_text(self.reader.dataset, name)
        if not totals.sequences:
            raise DatasetError(
                f"{self.reader.dataset}: nothing to export: of {totals.rows} rows {totals.without_frames} have no "
                f"frames, {totals.without_text} no text"
            )
        if pending:
            self._commit(number, (len(self.reader.parts), 0), totals)
        self.target.finish()

    def _rows(self, record: ExportRecord | None) -> Iterator[tuple[int, int, Row]]:
        first, start = (0, 0) if record is None else (record.next_part, record.next_row)
        for part in range(first, len(self.reader.parts)):
            for row_number, row in enumerate(self.reader.rows_of(part, start), start):
                yield part, row_number, row
            start = 0

    def _add(self, row: Row, totals: Totals) -> int:
        """Bytes of ids that the row gave."""
        made = self.maker.make(row)
        totals.rows += 1
        self.shown.advance(
            files=1, seconds=row.codes.shape[1] * self.reader.info.hop_length / self.reader.info.sample_rate
        )
        if made is Skipped.EMPTY:
            totals.without_frames += 1
            return 0
        if made is Skipped.WITHOUT_TEXT:
            totals.without_text += 1
            return 0
        ids = made.numpy().astype(self.maker.dtype)
        self.target.add(ExportedSequence(totals.sequences, row.id, ids))
        totals.sequences += 1
        totals.tokens += ids.size
        return ids.nbytes

    def _commit(self, number: int, reached: tuple[int, int], totals: Totals) -> None:
        files = self.target.commit(number)
        record = ExportRecord(
            number=number, files=files, next_part=reached[0], next_row=reached[1], totals=dataclasses.replace(totals)
        )
        record.commit(self.out)


def _check_format(file_format: str, shard_bytes: int, layout: str, out: str) -> None:
    if file_format not in FORMATS:
        raise ValueError(f"format {file_format!r} is not one of {', '.join(FORMATS)}")
    if shard_bytes < 1:
        raise ValueError(f"a shard has at least 1 byte, not {shard_bytes}")
    if file_format == "megatron" and layout not in ("flatten", "coarse_first"):
        raise ValueError(f"Megatron reads one sequence: layout flatten or coarse_first, not {layout}")
    if file_format == "megatron" and storage.is_s3(out):
        raise ValueError(f"{out}: Megatron files are appended to, which S3 cannot: write to a local directory")


def _begin(out: str, card: TokenCard, *, begun: bool) -> TokenCard | None:
    """Make sure that `out` is for this export, with its card in it; the finished card where nothing is left to do."""
    names = storage.list_names(out)
    visible = [name for name in names if not name.startswith(".")]
    if FILE_NAME in visible:
        earlier = read_token_card(out)
        difference = earlier.describe_difference(card)
        if difference is not None and (begun or earlier.totals is not None):
            raise DatasetError(f"{out} has another export: {difference}; export into another directory")
        if earlier.totals is not None:
            return earlier
    elif visible:
        raise DatasetError(f"{out}: there is {visible[0]}, and no export: write into a new directory")
    storage.remove_temporaries(out)
    storage.commit(storage.join(out, FILE_NAME), card.to_json().encode())
    return None


def _open_target(out: str, card: TokenCard, maker: SequenceMaker) -> Target:
    if card.files["format"] == "megatron":
        return MegatronFiles(out, maker.dtype)
    if card.files["format"] == "webdataset":
        return ShardedFiles(out, ".tar", TarShard)
    apart = maker.num_codebooks if maker.vocabulary.keeps_levels_apart else None
    return ShardedFiles(out, ".parquet", lambda: ParquetShard(maker.dtype, apart, card.to_json()))
