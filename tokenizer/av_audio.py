"""PyAV (FFmpeg) as a decoder, for what libsndfile cannot read: m4a, mp4, mov, aac, webm, mkv, wma, amr and video.

Only the first audio stream is decoded, and never a picture: FFmpeg is told one demuxer, the one that the first bytes
call for, and which decoders it may use. So nothing here opens playlists, addresses or other files either.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenizer.errors import AudioError
from tokenizer.mp4_tables import oversized_table
from tokenizer.sound_headers import skip_id3
from tokenizer.watched_stream import WatchedStream

_MPEG_TS_PACKET = 188
_MAGIC = {  # demuxer -> bytes, and where they stand
    "matroska": [(0, b"\x1aE\xdf\xa3")],
    "asf": [(0, b"0&\xb2u\x8ef\xcf\x11")],
    "amr": [(0, b"#!AMR")],
    "flv": [(0, b"FLV\x01")],
    "avi": [(8, b"AVI ")],
    "mpeg": [(0, b"\x00\x00\x01\xba")],
    "mov": [(4, box) for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")],
    "ogg": [(28, codec) for codec in (b"\x80theora", b"Speex   ", b"fishead")],
}
_DECODERS = (
    "aac,aac_latm,alac,amrnb,amrwb,ac3,eac3,dca,mlp,truehd,mp1float,mp2float,mp3float,mp3,opus,vorbis,speex,flac,"
    "wmav1,wmav2,wmapro,wmalossless,wmavoice,nellymoser,gsm,gsm_ms,adpcm_ms,adpcm_ima_wav,adpcm_ima_qt,adpcm_swf,"
    "pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,pcm_f64le,"
    "pcm_f64be,pcm_mulaw,pcm_alaw,pcm_bluray,pcm_dvd"
)
_BUFFER_BYTES = 2**18
_LOST_SECONDS = 0.5  # durations in headers count encoder delays or not


def container_of(watched: WatchedStream) -> str | None:
    """FFmpeg's name of the container that a file's first bytes show; None for anything unknown."""
    watched.seek(0)
    head = watched.read(_MPEG_TS_PACKET + 1)
    for demuxer, places in _MAGIC.items():
        if any(head[position : position + len(magic)] == magic for position, magic in places):
            return demuxer
    if head[:1] == b"G" and head[_MPEG_TS_PACKET:] == b"G":
        return "mpegts"
    watched.seek(skip_id3(watched))
    sync = watched.read(2)
    return "aac" if sync[:1] == b"\xff" and sync[1:] and sync[1] & 0xF6 == 0xF0 else None


class AvDecoder:
    """A `Decoder` of what PyAV reads; it never seeks, because FFmpeg does not do so to the sample in every container.

    Args:
        watched: the stream.
        name: of the file, for messages.
        container: FFmpeg's name of the demuxer.

    Raises:
        AudioError: PyAV is not installed, or the file has no audio stream, is damaged, or is of an unknown codec.
    """

    jumps = False

    def __init__(self, watched: WatchedStream, name: str, container: str) -> None:
        self._watched, self._name = watched, name
        fault = oversized_table(watched, watched.seek(0, os.SEEK_END)) if container == "mov" else None
        watched.check()
        if fault is not None:
            raise AudioError(f"{name}: {fault}")
        with ExitStack() as stack:
            with self._decoding():
                self._container = stack.enter_context(_open(watched, name, container))
                self._stream = self._choose_stream(container)
            self._frames = self._decode()
            # what headers say of rate and channels may be half the truth (HE-AAC): the first frame tells
            first = next(self._frames, None)
            if first is None:
                raise AudioError(f"{name}: no samples")
            self.sample_rate, self.channels = int(first.sample_rate), len(first.layout.channels)
            self._held = [_samples(first)]
            self.num_frames = self._claimed_frames(container)
            self._stack = stack.pop_all()

    def read(self, frames: int) -> npt.NDArray[np.float32]:
        """The next samples [n, C], n <= frames; none at the end."""
        count = sum(map(len, self._held))
        while count < frames and (frame := next(self._frames, None)) is not None:
            if (frame.sample_rate, len(frame.layout.channels)) != (self.sample_rate, self.channels):
                raise AudioError(
                    f"{self._name}: changes from {self.sample_rate} Hz in {self.channels} channel(s) to "
                    f"{frame.sample_rate} Hz in {len(frame.layout.channels)}: one file has one format"
                )
            self._held.append(_samples(frame))
            count += len(self._held[-1])
        held = np.concatenate(self._held) if self._held else np.empty((0, self.channels), np.float32)
        self._held = [held[frames:]] if len(held) > frames else []
        return held[:frames]

    def jump(self, frame: int) -> int:  # noqa: ARG002 - as in SoundFileDecoder
        """Nowhere: what is to be skipped is decoded."""
        return 0

    def check_end(self, num_frames: int) -> None:
        """Raise AudioError if a file that ended after so many samples shows that it should not have."""
        if self.num_frames is not None and num_frames < self.num_frames - _LOST_SECONDS * self.sample_rate:
            raise AudioError(f"{self._name}: damaged: ends after {num_frames} of {self.num_frames} samples")

    def close(self) -> None:
        """Free what FFmpeg holds; the stream stays open."""
        self._stack.close()

    def _choose_stream(self, container: str) -> Any:
        from av.stream import Discard

        if not self._container.streams.audio:
            raise AudioError(f"{self._name}: no audio stream in this {container} file")
        chosen = self._container.streams.audio[0]
        if chosen.codec_context.codec.name not in _DECODERS.split(","):
            raise AudioError(f"{self._name}: codec {chosen.codec_context.name!r} is not supported")
        for stream in self._container.streams:
            if stream.index != chosen.index:
                stream.discard = Discard.all
        chosen.codec_context.thread_count = 1
        return chosen

    def _decode(self) -> Iterator[Any]:
        """Frames with samples in them, to the end of the stream."""
        packets = self._container.demux(self._stream)
        while True:
            with self._decoding():
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            if packet is None:
                return
            yield from (frame for frame in frames if frame.samples)

    def _claimed_frames(self, container: str) -> int | None:
        # Only the tables of MP4 count every sample. Elsewhere a duration is missing, estimated, or that of the picture.
        if container != "mov" or not self._stream.duration or self._stream.duration < 0:
            return None
        return int(self._stream.duration * self._stream.time_base * self.sample_rate)

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        try:
            yield
        except (AudioError, MemoryError):
            raise
        except Exception as error:  # PyAV raises a dozen types of its own, and builtin ones, for bad bytes
            self._watched.check()
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise AudioError(f"{self._name}: not audio, or damaged: {reason}") from error
        self._watched.check()


def _open(watched: WatchedStream, name: str, container: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise AudioError(
            f"{name}: files of this kind ({container}) need PyAV: pip install 'quantone[audio-extra]'"
        ) from error
    watched.seek(0)
    return av.open(
        watched,
        format=container,
        metadata_errors="replace",
        buffer_size=_BUFFER_BYTES,
        container_options={"codec_whitelist": _DECODERS},
    )


def _samples(frame: Any) -> npt.NDArray[np.float32]:
    """Samples [n, C] of a frame, full scale 1."""
    stored: npt.NDArray[Any] = frame.to_ndarray()  # [C, n], or [1, n * C] where channels are interleaved
    stored = stored.T if frame.format.is_planar else stored.reshape(-1, len(frame.layout.channels))
    samples: npt.NDArray[np.float32] = np.ascontiguousarray(stored, dtype=np.float32)
    if stored.dtype == np.uint8:
        return (samples - np.float32(128)) / np.float32(128)
    if stored.dtype.kind == "i":
        return samples / np.float32(2.0 ** (8 * stored.dtype.itemsize - 1))
    return samples
