"""The codec: waveform to codes and back, whole files or step by step with the state in the caller's hands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from tokenizer.codec_networks import CodecNetworks
from tokenizer.door import checked_block, checked_codes, checked_scales, checked_waveform
from tokenizer.encoded import Encoded
from tokenizer.errors import AudioError, CodesError
from tokenizer.networks import is_causal
from tokenizer.resampling import StreamingResampler, mix_channels, resample
from tokenizer.segments import cut, decode_segments, encode_segments, frames_by_segment
from tokenizer.stream_state import DecodeState, EncodeState, batch_size
from tokenizer.streams import (
    decode_chunk,
    decode_stream,
    encode_chunk,
    encode_stream,
    finish_decoding,
    finish_encoding,
)

STEP_SECONDS = 20
CACHED_STEP_SECONDS = 1
ENGINE_STEP_SECONDS = 4
"""Longer audio goes through the networks in steps of this length: memory stays constant. Where layers run at the sample
rate, the caches of a CPU hold the activations of a second: the shorter step makes batches up to four times faster. The
compiled kernels go through a step in blocks of their own, and read their weights less often in a longer one."""

PASS_SECONDS = 20
"""A batch goes through PyTorch's layers on a CPU in passes of so many seconds a step, items of like length together: as
fast as all at once, with a fraction of the memory, which a process takes from the kernel page by page."""


class Codec(CodecNetworks):
    """Networks, codebooks and constants of one trained codec. Build it with `load_codec`.

    Rule for the tail: a last, partial frame is filled with silence, and decoding cuts it off again. So codes of whole
    frames are those of the reference implementations. Codecs with segments (EnCodec 48 kHz) follow their reference to
    the last sample instead.

    Codes depend on no neighbour in a batch and on no chunking.
    """

    @torch.inference_mode()
    def encode(
        self, waveform: Tensor, *, sample_rate: int | None = None, bandwidth_kbps: float | None = None
    ) -> Encoded:
        """Waveform to codes.

        Args:
            waveform: [C, S] or [B, C, S] float in [-1, 1].
            sample_rate: Hz of `waveform`. Given, the waveform is resampled and mixed to what the codec takes; None says
                that it is at the codec's rate and has the codec's channels.
            bandwidth_kbps: None for all codebooks.

        Returns:
            Encoded with codes [B, K, T], T = spec.num_frames(S at the codec's rate).

        Raises:
            AudioError: wrong shape or channel count, no samples, samples that are not finite.
            ValueError: a bandwidth that the codec does not have.
        """
        spec = self.spec
        num_codebooks = spec.num_codebooks_at(bandwidth_kbps)
        channels = spec.channels if sample_rate is None else None
        waveform = checked_waveform(waveform, spec, self._device, channels=channels)
        source_num_samples = waveform.shape[-1]
        if sample_rate is not None:
            waveform = torch.stack([mix_channels(item, spec.channels) for item in waveform])
            waveform = resample(waveform, sample_rate, spec.sample_rate)
        codes, scales = self._encode_chunks([waveform], num_codebooks)
        return Encoded(codes, scales, waveform.shape[-1], sample_rate or spec.sample_rate, source_num_samples)

    @torch.inference_mode()
    def encode_batch(self, waveforms: Sequence[Tensor], *, bandwidth_kbps: float | None = None) -> list[Encoded]:
        """Waveforms of different lengths, each with exactly the codes that it gets alone.

        Causal codecs take them together. Where a layer looks ahead, the end of an item would hear its padding: only
        items of equally many frames share a pass there, and codecs with segments or whole files take one at a time.

        Args:
            waveforms: [C, S_i] each, at the codec's rate.
            bandwidth_kbps: None for all codebooks.

        Returns:
            One Encoded of a single row each, in order.
        """
        spec = self.spec
        num_codebooks = spec.num_codebooks_at(bandwidth_kbps)
        items = [checked_block(item, spec, self._device, channels=spec.channels) for item in waveforms]
        encoded: dict[int, Encoded] = {}
        for members in self._shared_passes([item.shape[-1] for item in items]):
            longest = max(items[index].shape[-1] for index in members)
            rows = [nn.functional.pad(items[index], (0, longest - items[index].shape[-1])) for index in members]
            codes, scales = self._encode_chunks([torch.stack(rows)], num_codebooks)
            for row, index in enumerate(members):
                num_samples = items[index].shape[-1]
                own = codes[row : row + 1, :, : spec.num_frames(num_samples)]
                loudness = None if scales is None else scales[row : row + 1]
                encoded[index] = Encoded(own, loudness, num_samples, spec.sample_rate, num_samples)
        return [encoded[index] for index in range(len(items))]

    @torch.inference_mode()
    def encode_blocks(
        self, blocks: Iterable[Tensor], *, sample_rate: int | None = None, bandwidth_kbps: float | None = None
    ) -> Encoded:
        """A waveform that arrives in blocks to the codes that it gets as a whole.

        Memory is constant in its length, but for the codes, unless the codec can only take whole files.

        Args:
            blocks: [C, n] each, of any lengths, all with the same C.
            sample_rate: as in `encode`.
            bandwidth_kbps: None for all codebooks.

        Raises:
            AudioError: no samples, or a block that `encode` would not take.
            ValueError: a bandwidth that the codec does not have.
        """
        spec = self.spec
        num_codebooks = spec.num_codebooks_at(bandwidth_kbps)
        rate = spec.sample_rate if sample_rate is None else sample_rate
        lengths = {"in": 0, "out": 0}

        def arriving() -> Iterator[Tensor]:
            resampler = StreamingResampler(rate, spec.sample_rate)
            state = resampler.initial_state(spec.channels)
            for block in blocks:
                channels = spec.channels if sample_rate is None else block.shape[0]
                checked = checked_block(block, spec, self._device, channels=channels, allow_empty=True)
                lengths["in"] += checked.shape[-1]
                piece, state = resampler.step(mix_channels(checked, spec.channels), state)
                yield piece[None]
            if lengths["in"] == 0:
                raise AudioError("waveform has no samples")
            yield resampler.finish(state)[None]

        def counted() -> Iterator[Tensor]:
            for piece in arriving():
                lengths["out"] += piece.shape[-1]
                yield piece

        codes, scales = self._encode_chunks(counted(), num_codebooks)
        return Encoded(codes, scales, lengths["out"], rate, lengths["in"])

    @torch.inference_mode()
    def decode(
        self, encoded: Encoded, *, bandwidth_kbps: float | None = None, sample_rate: int | None = None
    ) -> Tensor:
        """Codes to waveform [B, C, S].

        Args:
            encoded: what `encode` gave, or codes from anywhere with their number of samples.
            bandwidth_kbps: at most that of the codes; None uses all levels they have.
            sample_rate: Hz of the waveform; None for the codec's.

        Returns:
            S is `encoded.num_samples`; at a given sample rate it is as long as what was encoded, to the sample.

        Raises:
            CodesError: wrong shape, type, range, number of levels, frames, scales or samples.
            ValueError: a bandwidth that the codec does not have.
        """
        nothing = torch.zeros(len(encoded.codes), self.spec.channels, 0, device=self._device)
        waveform = torch.cat([nothing, *self.decode_blocks(encoded, bandwidth_kbps=bandwidth_kbps)], dim=-1)
        if sample_rate is None:
            return waveform
        wanted = encoded.num_samples_at(sample_rate, self.spec)
        return resample(waveform, self.spec.sample_rate, sample_rate)[..., :wanted]

    @torch.inference_mode()
    def decode_blocks(self, encoded: Encoded, *, bandwidth_kbps: float | None = None) -> Iterator[Tensor]:
        """What `decode` gives, [B, C, n] at a time: memory is constant in the length, but for the codes.

        Raises:
            CodesError, ValueError: as in `decode`.
        """
        codes = checked_codes(encoded.codes, self.spec, self._device)
        codes = codes[:, : encoded.num_codebooks_at(bandwidth_kbps, self.spec)]
        if encoded.num_samples < 0:
            raise CodesError(f"num_samples must not be negative: {encoded.num_samples}")
        frames = self.spec.num_frames(encoded.num_samples)
        if frames != codes.shape[-1]:
            raise CodesError(f"{encoded.num_samples} samples are {frames} frames, the codes have {codes.shape[-1]}")
        scales = checked_scales(encoded.scales, codes, self.spec, encoded.num_samples)
        left = encoded.num_samples
        for piece in self._decode_pieces(codes, scales, encoded.num_samples) if left else ():
            yield piece[..., :left]
            left = max(0, left - piece.shape[-1])
        if left:
            yield torch.zeros(codes.shape[0], self.spec.channels, left, device=self._device)

    def encode_state(self, batch_size: int = 1, *, bandwidth_kbps: float | None = None) -> EncodeState:
        """A fresh stream, or `batch_size` streams fed side by side.

        Raises:
            ValueError: the codec has segments or takes whole files only, or lacks the bandwidth.
        """
        num_codebooks = self.spec.num_codebooks_at(bandwidth_kbps)
        pending = torch.zeros(batch_size, self.spec.channels, 0, device=self._device)
        return EncodeState(pending, self._streams().encoder.initial_state(batch_size), num_codebooks)

    @torch.inference_mode()
    def encode_step(self, waveform: Tensor, state: EncodeState) -> tuple[Tensor, EncodeState]:
        """The next chunk of a stream, of any length.

        A codec that mirrors the start of a stream (as EnCodec's released weights do) gives no codes until
        `start_frames` frames have been heard, and then all of them: each of its convolutions pads with the samples that
        follow, backwards, so the first code depends on the first frames. From there on every frame is answered at once.
        A codec that looks ahead (DAC) stays behind by what it looks at. `encode_flush` gives the rest.

        Args:
            waveform: [B, C, S] at the codec's rate.
            state: from `encode_state` or the step before.

        Returns:
            The codes [B, K, T] of the frames that became known, and the state for the next chunk.

        Raises:
            AudioError: as in `encode`; S may be 0.
        """
        chunk = checked_waveform(waveform, self.spec, self._device, channels=self.spec.channels, allow_empty=True)
        return encode_chunk(self._streams(), self.spec, chunk, state)

    @torch.inference_mode()
    def encode_flush(self, state: EncodeState) -> tuple[Tensor, EncodeState]:
        """End a stream: the partial frame that waits, filled with silence, and all that was held back.

        Returns:
            The last codes [B, K, T], and the state of a fresh stream.
        """
        codes = finish_encoding(self._streams(), self.spec, state)
        fresh = self._networks.encoder.initial_state(len(codes))
        return codes, EncodeState(state.pending[..., :0], fresh, state.num_codebooks)

    def decode_state(self, batch_size: int = 1) -> DecodeState:
        """A fresh stream of codes, or `batch_size` of them side by side.

        Raises:
            ValueError: the codec has segments, or takes whole files only.
        """
        return DecodeState(self._streams().decoder.initial_state(batch_size), 0)

    @torch.inference_mode()
    def decode_step(self, codes: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
        """The next frames of a stream [B, K, T] to the samples [B, C, S] that became known.

        S is T * hop_length, except where the decoder mirrors the start of the stream or looks ahead: see `encode_step`.
        """
        codes = checked_codes(codes, self.spec, self._device)
        return decode_chunk(self._streams(), self.spec, codes, state)

    @torch.inference_mode()
    def decode_flush(self, state: DecodeState) -> tuple[Tensor, DecodeState]:
        """End a stream: the samples that were held back, up to the end of the last frame, and a fresh state."""
        nothing = torch.zeros(batch_size(state), self.spec.channels, 0, device=self._device)
        waveform = finish_decoding(self._streams(), state, nothing)
        return waveform, self.decode_state(len(waveform))

    @property
    def _frames_per_step(self) -> int:
        cached = self._device.type == "cpu" and self.spec.family != "patch"
        step_s = CACHED_STEP_SECONDS if self._engine_in_use() is None else ENGINE_STEP_SECONDS
        seconds = step_s if cached else STEP_SECONDS
        return max(1, seconds * self.spec.sample_rate // self.spec.hop_length)

    def _shared_passes(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Which items go through the networks together, so that none hears another's length."""
        causal = self.streamable and is_causal(self.spec)
        groups: dict[tuple[str, int], list[int]] = {}
        for index, length in enumerate(lengths):
            frames = self.spec.num_frames(length)
            if causal and frames >= self.start_frames:
                key = ("together", 0)
            else:
                key = ("equal", frames) if self.streamable else ("alone", index)
            groups.setdefault(key, []).append(index)
        for group in groups.values():
            yield from self._passes_of(group, lengths)

    def _passes_of(self, group: list[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """What may go through the networks together, in passes that the caches and the memory of a CPU can take."""
        if self._device.type != "cpu" or self._engine_in_use() is not None:
            yield group
            return
        step, most = self._frames_per_step * self.spec.hop_length, PASS_SECONDS * self.spec.sample_rate
        members: list[int] = []
        for index in sorted(group, key=lambda index: lengths[index]):
            if members and (len(members) + 1) * min(step, lengths[index]) > most:
                yield members
                members = []
            members.append(index)
        yield members

    def _encode_chunks(self, chunks: Iterable[Tensor], num_codebooks: int) -> tuple[Tensor, Tensor | None]:
        """A waveform in chunks [B, C, n] to its codes [B, K, T] and scales [B, N]."""
        if self.spec.segment is not None:
            return encode_segments(self._networks, chunks, self.spec.segment, num_codebooks)
        if not self.streamable:
            return self._encode_whole(torch.cat(list(chunks), dim=-1), num_codebooks), None
        step = self._frames_per_step * self.spec.hop_length  # equal steps: equal codes, however the waveform came
        return encode_stream(self._networks, self.spec, cut(chunks, step, step), num_codebooks), None

    def _decode_pieces(self, codes: Tensor, scales: Tensor | None, num_samples: int) -> Iterator[Tensor]:
        """Codes and scales, checked, to the waveform, [B, C, n] at a time."""
        if self.spec.segment is not None:
            frames = frames_by_segment(self.spec, num_samples)
            return decode_segments(self._networks, codes, scales, frames, self.spec.segment.stride)
        if not self.streamable:
            return iter([self._decode_whole(codes, num_samples)])
        return decode_stream(self._networks, self.spec, codes, self._frames_per_step)

    def _encode_whole(self, waveform: Tensor, num_codebooks: int) -> Tensor:
        """A whole file at once, for networks that look at its end: [B, C, S] to [B, K, T]."""
        return self._networks.quantizer.encode(self._networks.encoder(waveform), num_codebooks)

    def _decode_whole(self, codes: Tensor, num_samples: int) -> Tensor:  # noqa: ARG002 - adapters may need it
        """All codes at once: [B, K, T] to [B, C, about num_samples]."""
        waveform: Tensor = self._networks.decoder(self._networks.quantizer.decode(codes))
        return waveform
