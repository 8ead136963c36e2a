"""Token datasets as a stream of tensors for PyTorch: shared by ranks and workers, shuffled, and resumed exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.exporting.export_card import make_card
from pipelines.exporting.export_rows import ROWS_AT_A_TIME, PartRows, Row, RowReader
from pipelines.exporting.export_sequences import SequenceMaker, SequenceSettings, Skipped
from pipelines.exporting.token_order import UNEVEN, TokenOrder, Visits, part_of, share_of
from tokenizer import DatasetError


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """What of a dataset is seen, by whom and in which order.

    Args:
        seed: of the order, another one in every epoch; None for the order in which rows are stored.
        parts_mixed: with a seed, so many parts are in memory at once, and their rows are mixed.
        rank: number of this process among those that train together; None asks torch.distributed.
        world_size: how many they are; None likewise.
        uneven: where ranks cannot have equally many rows: keep, drop or repeat, as `share_of` says.
        repeat: go on with the next epoch for ever.
        sequence_length: pack sequences into blocks of so many steps; None gives them one by one.
        keep_last: the last block of an epoch, which is not full, is padded; or else left out.

    Raises:
        ValueError: a number is out of range, or an option there is not.
    """

    seed: int | None = None
    parts_mixed: int = 4
    rank: int | None = None
    world_size: int | None = None
    uneven: str = "keep"
    repeat: bool = False
    sequence_length: int | None = None
    keep_last: bool = True

    def __post_init__(self) -> None:
        if self.uneven not in UNEVEN:
            raise ValueError(f"uneven {self.uneven!r} is not one of {', '.join(UNEVEN)}")
        if self.parts_mixed < 1 or (self.sequence_length is not None and self.sequence_length < 1):
            raise ValueError("parts_mixed and sequence_length are positive")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative")
        if (self.rank is None) != (self.world_size is None):
            raise ValueError("name both rank and world_size, or neither")
        if self.rank is not None and self.world_size is not None and not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not one of {self.world_size}")


@dataclass(slots=True)
class _Place:
    """Where a stream is: all that it has to remember."""

    epoch: int = 0
    position: int = 0  # rows of this worker's part of the epoch that are done
    offset: int = 0  # steps of the next row that are done, where sequences are packed


class TokenStream(IterableDataset[dict[str, Any]]):
    """The rows of a token dataset as sequences of ids, in a layout that is applied on the fly.

    Every row is seen exactly once per epoch over all ranks and DataLoader workers (`uneven` may drop or repeat a few).
    Items are {"id": str, "input_ids": [N] or [N, K] int64}; with `sequence_length` L they are blocks
    {"input_ids": [L] or [L, K], "document_ids": [L], "position_ids": [L]}: which of the block's documents a step is of,
    -1 for padding, and its place in the document's piece, from 0.

    `state_dict` after an item leads to a stream whose next items are those that would have come. With DataLoader
    workers it is they who have the state: torchdata's StatefulDataLoader asks them.

    Args:
        dataset: a local directory or s3://.
        sequences: what each row becomes.
        settings: which rows, in which order.

    Attributes:
        card: what the ids mean, as `export_tokens` writes it beside them.
        num_rows: of the dataset.

    Raises:
        ValueError: settings that there are not, or that do not fit the dataset.
        DatasetError: the dataset is damaged or empty.
        ImportError: text without the package `tokenizers`.
    """

    def __init__(
        self, dataset: str | Path, sequences: SequenceSettings | None = None, settings: StreamSettings | None = None
    ) -> None:
        info = read_dataset_info(dataset)
        self.settings = settings or StreamSettings()
        self._maker = SequenceMaker(sequences or SequenceSettings(), info)
        self._reader = RowReader(dataset, self._maker.num_codebooks, self._maker.text_column)
        mixed = 1 if self.settings.seed is None else self.settings.parts_mixed
        self._order = TokenOrder(self._reader.num_rows(), seed=self.settings.seed, groups_mixed=mixed)
        self.num_rows = self._order.num_rows
        if not self.num_rows:
            raise DatasetError(f"{dataset} has no rows")
        if self._pads and self._maker.vocabulary.special_tokens is None:
            raise ValueError("bare audio has no padding: a last block that is not full needs keep_last=False")
        self.card = make_card(self._maker, info, str(dataset), {})
        self._rank, self._world_size = _rank_and_world_size(self.settings)
        self._share = share_of(self.num_rows, self._rank, self._world_size, self.settings.uneven)
        self._place, self._resumed = _Place(), False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """From the beginning of the epoch, or right behind the state that was loaded."""
        if not self._resumed:
            self._place = _Place(self._place.epoch)
        self._resumed = False
        length = self.settings.sequence_length
        return self._items(self._place) if length is None else self._blocks(self._place, length)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of; a place in this very epoch that was loaded is kept."""
        if epoch < 0:
            raise ValueError(f"epoch {epoch} is negative")
        if epoch != self._place.epoch:
            self._place, self._resumed = _Place(epoch), False

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is behind the last item, in plain values."""
        place = self._place
        return {"epoch": place.epoch, "position": place.position, "offset": place.offset, "of": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the next iteration behind the item after which `state` was taken.

        Raises:
            ValueError: the state is of another stream: other data, settings, rank or worker.
        """
        ours, theirs = self._identity(), dict(state.get("of", {}))
        differences = [
            f"{name} {theirs.get(name)} there, {ours[name]} here" for name in ours if theirs.get(name) != ours[name]
        ]
        if differences:
            raise ValueError(f"the state is of another stream: {'; '.join(differences)}")
        self._place = _Place(int(state["epoch"]), int(state["position"]), int(state["offset"]))
        self._resumed = True

    @property
    def _pads(self) -> bool:
        return bool(self.settings.sequence_length) and self.settings.keep_last and not self.settings.repeat

    def _identity(self) -> dict[str, Any]:
        worker, num_workers = _worker()
        settings = self.settings
        return {
            "rows": self.num_rows,
            "data": self.card.source["sha256"],
            "sequences": json.dumps(self.card.sequences, sort_keys=True),
            "seed": settings.seed,
            "parts_mixed": settings.parts_mixed,
            "rank": f"{self._rank} of {self._world_size}",
            "worker": f"{worker} of {num_workers}",
            "uneven": settings.uneven,
            "repeat": settings.repeat,
            "sequence_length": settings.sequence_length,
            "keep_last": settings.keep_last,
        }

    def _items(self, place: _Place) -> Iterator[dict[str, Any]]:
        for behind, row, ids in self._sequences(place):
            self._place = behind
            yield {"id": row.id, "input_ids": ids}

    def _blocks(self, place: _Place, length: int) -> Iterator[dict[str, Any]]:
        pieces: list[Tensor] = []
        free, offset = length, place.offset
        for behind, _, ids in self._sequences(place):
            while offset < len(ids):
                pieces.append(ids[offset : offset + free])
                offset += len(pieces[-1])
                free -= len(pieces[-1])
                if free == 0:
                    inside = offset < len(ids)
                    self._place = _Place(behind.epoch, behind.position - 1, offset) if inside else behind
                    yield _block(pieces)
                    pieces, free = [], length
            offset = 0
        if pieces and self._pads and self._maker.vocabulary.special_tokens is not None:
            self._place = _Place(place.epoch, len(self._part()))
            padding = self._maker.vocabulary.special_tokens.padding
            yield _block(pieces, torch.full((free, *pieces[0].shape[1:]), padding))

    def _sequences(self, place: _Place) -> Iterator[tuple[_Place, Row, Tensor]]:
        """Sequences from a place on, each with the place behind it."""
        epoch, position, part = place.epoch, place.position, self._part()
        while True:
            any_sequence = position > 0
            for visits in self._order.visits(epoch, part.start + position, part.stop):
                for row in self._rows(visits):
                    position += 1
                    ids = self._maker.make(row)
                    if not isinstance(ids, Skipped):
                        any_sequence = True
                        yield _Place(epoch, position), row, ids
            if not self.settings.repeat:
                return
            if not any_sequence:  # or it would search for ever
                asked = f"the {len(part)} rows of worker {_worker()[0]} of rank {self._rank}"
                raise DatasetError(f"{self._reader.dataset}: {asked} give no sequence at all")
            epoch, position = epoch + 1, 0

    def _part(self) -> range:
        return part_of(self._share, *_worker())

    def _rows(self, visits: Visits) -> Iterator[Row]:
        parts = {int(part): self._reader.read_part(int(part)) for part in np.unique(visits.groups)}
        for start in range(0, len(visits.rows), ROWS_AT_A_TIME):
            some = slice(start, start + ROWS_AT_A_TIME)
            yield from _in_order(parts, visits.groups[some].tolist(), visits.rows[some].tolist())


def collate_tokens(items: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Any]:
    """A batch of sequences of unequal lengths, for `DataLoader(collate_fn=partial(collate_tokens, padding=...))`.

    Args:
        items: of a stream without `sequence_length`.
        padding: id behind the end of shorter ones.

    Returns:
        "id": list of B; "input_ids": [B, N] or [B, N, K]; "attention_mask": [B, N] bool, False where padding is.
    """
    sequences = [item["input_ids"] for item in items]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=padding)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return {"id": [item["id"] for item in items], "input_ids": ids, "attention_mask": mask}


def _in_order(parts: Mapping[int, PartRows], of_part: Sequence[int], numbers: Sequence[int]) -> Iterator[Row]:
    """Rows of several parts in the order asked for; those of one part are read at once."""
    read = {
        part: parts[part].read([number for own, number in zip(of_part, numbers, strict=True) if own == part])
        for part in set(of_part)
    }
    for part in of_part:
        yield next(read[part])


def _block(pieces: Sequence[Tensor], padding: Tensor | None = None) -> dict[str, Any]:
    lengths = torch.tensor([len(piece) for piece in pieces])
    documents = torch.repeat_interleave(torch.arange(len(pieces)), lengths)
    positions = torch.cat([torch.arange(len(piece)) for piece in pieces])
    if padding is None:
        return {"input_ids": torch.cat([*pieces]), "document_ids": documents, "position_ids": positions}
    nothing = torch.full((len(padding),), -1)
    return {
        "input_ids": torch.cat([*pieces, padding]),
        "document_ids": torch.cat([documents, nothing]),
        "position_ids": torch.cat([positions, torch.zeros_like(nothing)]),
    }


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _rank_and_world_size(settings: StreamSettings) -> tuple[int, int]:
    if settings.rank is not None and settings.world_size is not None:
        return settings.rank, settings.world_size
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
