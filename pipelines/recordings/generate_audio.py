"""A recording goes on: its codes are the prompt of a language model, and new frames become sound as they come."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lm_head.coarse_first import LanguageModel
from lm_head.generation import generate
from lm_head.lm_checkpoint import load_lm, read_lm_card
from lm_head.sampling import Sampling
from pipelines.progress import Progress
from tokenizer import AudioError, CheckpointError, Codec, load_codec, read_audio, write_audio_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """How a recording goes on."""

    seconds: float = 5.0  # of new sound
    bandwidth_kbps: float | None = None  # None: as many levels as codec and language model have
    sampling: Sampling | None = None  # None: as the model has it
    seed: int = 0
    text: str | None = None  # what is said, in the prompt and after it
    keep_prompt: bool = True  # in front of what is new, as the codec hears it

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds must be a positive number, not {self.seconds!r}")


@dataclass(frozen=True, slots=True)
class GeneratedAudio:
    """What was written, and how fast it came."""

    prompt_frames: int
    new_frames: int
    num_codebooks: int
    first_frames_s: float  # from the prompt's codes to the first new frames
    generation_s: float  # of the language model, decoding left out

    @property
    def frames_per_second(self) -> float:
        """Speed of the language model."""
        return self.new_frames / self.generation_s


def generate_audio(
    prompt: str | Path,
    output: str | Path,
    *,
    lm: str = "speech_24khz",
    codec: str | None = None,
    continuation: Continuation | None = None,
    progress: bool = False,
) -> GeneratedAudio:
    """Continue a recording.

    The prompt ends with its last whole frame. Writing goes on while frames come; the file appears when it is whole.

    Args:
        prompt: an audio file.
        output: the audio file to write, of any format of `write_audio`.
        lm: anything for `load_lm`.
        codec: anything for `load_codec`; None takes the one that the language model names.
        continuation: how long, and in which manner.
        progress: a bar, or lines, on stderr.

    Raises:
        AudioError: the prompt cannot be read or is shorter than a frame, or the output cannot hold it.
        CheckpointError: no such language model or codec, or they do not belong together.
        ValueError: the codec does not stream, or lacks the bandwidth; text for a model that takes none.
    """
    wanted = continuation or Continuation()
    model, sound = load_lm(lm), _codec_of(lm, codec)
    num_codebooks = _num_codebooks(model, sound, wanted.bandwidth_kbps)
    codes = _prompt_codes(Path(prompt), sound, num_codebooks)
    num_samples = max(1, round(wanted.seconds * sound.spec.sample_rate))
    num_frames = sound.spec.num_frames(num_samples)
    text = None if wanted.text is None else [wanted.text]
    clock = _Clock(generate(model, codes, num_frames, sampling=wanted.sampling, seed=wanted.seed, text=text))
    prompt_samples = codes.shape[-1] * sound.spec.hop_length
    first = 0 if wanted.keep_prompt else prompt_samples
    with Progress("generate", 1, wanted.seconds, shown=progress) as shown:
        blocks = _window(_decoded(sound, codes, _counted(clock, sound, shown)), first, prompt_samples + num_samples)
        write_audio_blocks(output, blocks, sound.spec.sample_rate, num_samples=prompt_samples + num_samples - first)
        shown.advance(files=1)
    return GeneratedAudio(codes.shape[-1], num_frames, num_codebooks, clock.first_s, clock.total_s)


class _Clock:
    """Frames, and the time that they took."""

    def __init__(self, frames: Iterator[Tensor]) -> None:
        self._frames = frames
        self.first_s = self.total_s = 0.0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            begin = time.perf_counter()
            frames = next(self._frames, None)
            self.total_s += time.perf_counter() - begin
            if frames is None:
                return
            self.first_s = self.first_s or self.total_s
            yield frames


def _codec_of(lm: str, codec: str | None) -> Codec:
    card = read_lm_card(lm).codec
    loaded = load_codec(str(card.get("name")) if codec is None else codec)
    if loaded.sha256 != card.get("sha256"):
        raise CheckpointError(
            f"language model {lm!r} knows the codes of codec {card.get('name')!r}, {str(card.get('sha256'))[:12]}, "
            f"and this is {loaded.name!r}, {loaded.sha256[:12]}: name the codec that its tokens were made with"
        )
    return loaded


def _num_codebooks(lm: LanguageModel, codec: Codec, bandwidth_kbps: float | None) -> int:
    known = lm.config.num_codebooks
    if bandwidth_kbps is None:
        return min(known, codec.spec.num_codebooks)
    wanted = codec.spec.num_codebooks_at(bandwidth_kbps)
    if wanted > known:
        raise ValueError(
            f"{bandwidth_kbps:g} kbps are {wanted} levels, the language model knows {known}: "
            f"{known * codec.spec.level_kbps:g} kbps"
        )
    return wanted


def _prompt_codes(path: Path, codec: Codec, num_codebooks: int) -> Tensor:
    """[1, K, P] of whole frames: silence that fills the last one would be heard where new sound begins."""
    waveform, sample_rate = read_audio(path)
    kbps = num_codebooks * codec.spec.level_kbps
    encoded = codec.encode(waveform, sample_rate=sample_rate, bandwidth_kbps=kbps)
    whole_frames = encoded.num_samples // codec.spec.hop_length
    if whole_frames == 0:
        raise AudioError(f"{path}: shorter than a frame of the codec, {1 / float(codec.spec.frame_rate):.3f} s")
    return encoded.codes[..., :whole_frames]


def _counted(frames: Iterable[Tensor], codec: Codec, shown: Progress) -> Iterator[Tensor]:
    for some in frames:
        yield some
        shown.advance(seconds=some.shape[-1] / float(codec.spec.frame_rate))


def _decoded(codec: Codec, prompt: Tensor, frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """[C, n] samples of the prompt and then of new frames, in one stream: no seam between them."""
    state = codec.decode_state()
    pieces = torch.split(prompt, max(1, round(codec.spec.frame_rate)), dim=-1)  # a second each
    for some in itertools.chain(pieces, frames):
        waveform, state = codec.decode_step(some, state)
        yield waveform[0]
    waveform, _ = codec.decode_flush(state)
    yield waveform[0]


def _window(blocks: Iterable[Tensor], first: int, end: int) -> Iterator[Tensor]:
    """The samples from `first` to `end` of all that come."""
    position = 0
    for block in blocks:
        yield block[:, max(0, first - position) : max(0, end - position)]
        position += block.shape[-1]
