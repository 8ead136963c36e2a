"""Codes of streams: networks fed chunk by chunk, with what waits between chunks in the caller's hands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from tokenizer.encoded import CodeBuffer
from tokenizer.networks import Networks
from tokenizer.spec import CodecSpec
from tokenizer.stream_state import DecodeState, EncodeState
from tokenizer.streaming_layer import joined


def encode_chunk(networks: Networks, spec: CodecSpec, chunk: Tensor, state: EncodeState) -> tuple[Tensor, EncodeState]:
    """The next samples [B, C, S] to the codes [B, K, T] that became known. Frames go through the networks whole."""
    samples = torch.cat([state.pending, chunk], dim=-1) if state.pending.shape[-1] else chunk
    whole = samples.shape[-1] // spec.hop_length * spec.hop_length
    latents, network = networks.encoder.step(samples[..., :whole], state.network)
    codes = networks.quantizer.encode(latents, state.num_codebooks)
    return codes, EncodeState(samples[..., whole:].clone(), network, state.num_codebooks)


def finish_encoding(networks: Networks, spec: CodecSpec, state: EncodeState) -> Tensor:
    """The frame that waits, filled with silence, and all that was held back: codes [B, K, T]."""
    missing = -state.pending.shape[-1] % spec.hop_length
    silence = state.pending.new_zeros(*state.pending.shape[:2], missing)
    codes, state = encode_chunk(networks, spec, silence, state)
    held = networks.encoder.finish(state.network)
    return joined(codes, None if held is None else networks.quantizer.encode(held, state.num_codebooks))


def decode_chunk(networks: Networks, spec: CodecSpec, codes: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
    """The next codes [B, K, T] to the samples [B, C, S] that became known."""
    waveform, network = networks.decoder.step(networks.quantizer.decode(codes), state.network)
    owed = state.owed + codes.shape[-1] * spec.hop_length - waveform.shape[-1]
    return waveform, DecodeState(network, owed)


def finish_decoding(networks: Networks, state: DecodeState, nothing: Tensor) -> Tensor:
    """What was held back, up to the end of the last frame: [B, C, S]. `nothing` is [B, C, 0].

    DAC's decoder ends some samples early where its strides are odd: silence stands there.
    """
    waveform = joined(nothing, networks.decoder.finish(state.network))
    return functional.pad(waveform, (0, state.owed - waveform.shape[-1]))


def encode_stream(networks: Networks, spec: CodecSpec, chunks: Iterable[Tensor], num_codebooks: int) -> Tensor:
    """All chunks [B, C, n] of a stream, at least one, to its codes [B, K, T]."""
    state: EncodeState | None = None
    buffer = CodeBuffer(spec.codebook_size)
    for chunk in chunks:
        if state is None:
            state = EncodeState(chunk[..., :0], networks.encoder.initial_state(chunk.shape[0]), num_codebooks)
        codes, state = encode_chunk(networks, spec, chunk, state)
        buffer.append(codes)
    if state is None:
        raise ValueError("a stream of no chunks has no codes")
    buffer.append(finish_encoding(networks, spec, state))
    return buffer.gathered()


def decode_stream(networks: Networks, spec: CodecSpec, codes: Tensor, frames_at_once: int) -> Iterator[Tensor]:
    """Codes [B, K, T] to the waveform, [B, C, n] at a time."""
    state = DecodeState(networks.decoder.initial_state(codes.shape[0]), 0)
    for chunk in torch.split(codes, frames_at_once, dim=-1):
        waveform, state = decode_chunk(networks, spec, chunk, state)
        yield waveform
    nothing = torch.zeros(codes.shape[0], spec.channels, 0, device=codes.device)
    yield finish_decoding(networks, state, nothing)
