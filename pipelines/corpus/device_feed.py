"""Batches on their way to the device: the next one is copied while the present one is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipelines.corpus.bundle_reader import ReadAudio

Batch = Sequence[ReadAudio]


def on_device(batches: Sequence[Batch], device: torch.device) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Each batch with its waveforms [C, S] as tensors on the device.

    On a GPU they go from pinned memory on a stream of their own, one batch ahead of the one that is computed.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, _tensors(batch)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead = [_copy(batch, device, stream) for batch in batches[:1]]
    for index, batch in enumerate(batches):
        waveforms, copied = ahead.pop()
        if index + 1 < len(batches):
            ahead.append(_copy(batches[index + 1], device, stream))
        computing = torch.cuda.current_stream(device)
        computing.wait_event(copied)
        for waveform in waveforms:
            waveform.record_stream(computing)  # else its memory could be reused before it has been computed with
        yield batch, waveforms


def _copy(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> tuple[list[Tensor], torch.cuda.Event]:
    with torch.cuda.stream(stream):
        waveforms = [waveform.pin_memory().to(device, non_blocking=True) for waveform in _tensors(batch)]
        return waveforms, stream.record_event()


def _tensors(batch: Batch) -> list[Tensor]:
    # Copied: arrays from the object store are read-only, which torch warns about.
    return [torch.from_numpy(item.waveform.copy()) for item in batch]
