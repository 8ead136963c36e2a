"""How like real speech generated tokens are, by measures: python benchmarks/generation_likeness.py LM DATASET.

Recordings of a token dataset are continued from their first three seconds. Beside the continuations stand what the
recordings really went on with, decoded from their own tokens, and a control: the same codes in another order of frames.

- distance: total variation between the distributions of level 0's codes, in 16 groups of like codes (k-means of the
  codebook), since a few thousand frames say little about 1,024 codes one by one;
- repeats: share of frames whose level 0 is that of the frame before;
- bits: what the continuation costs under the model itself, of level 0: generation at temperature 1 should cost what
  real speech costs;
- voiced: share of 40 ms windows with a pitch between 70 and 400 Hz (normalised autocorrelation above 0.5);
- active: share of windows within 40 dB of the loudest one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from lm_head import Sampling, generate
from lm_head.code_loss import code_nats, to_bits
from lm_head.lm_checkpoint import load_token_lm
from lm_head.token_lm import TokenLM
from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.datasets.stored_codes import load_dataset_codec, read_utterances
from pipelines.spectrogram import reference_level, spectrogram_pixels
from tokenizer import Codec, Encoded, write_audio

GROUPS = 16
WINDOW_S = 0.04
Floats = NDArray[np.float32]


def main() -> None:
    """Measure, print a table, and write some of what was generated."""
    arguments = _arguments()
    torch.manual_seed(0)
    lm = load_token_lm(arguments.lm)
    codec = load_dataset_codec(read_dataset_info(arguments.dataset))
    levels = codec.spec.num_codebooks_at(arguments.bandwidth)
    rate = round(codec.spec.frame_rate)
    groups = code_groups(codec)
    kinds: dict[str, list[torch.Tensor]] = {"real": [], "generated": [], "shuffled": []}
    for number, codes in enumerate(recordings(arguments.dataset, levels, (3 + arguments.seconds) * rate, arguments.n)):
        prompt, real = codes[..., : 3 * rate], codes[..., 3 * rate : (3 + arguments.seconds) * rate]
        sampling = Sampling(temperature=arguments.temperature, top_k=arguments.top_k)
        new = torch.cat(list(generate(lm, prompt, real.shape[-1], sampling=sampling, seed=number)), dim=-1)
        order = torch.randperm(real.shape[-1])
        for kind, part in {"real": real, "generated": new, "shuffled": real[..., order]}.items():
            kinds[kind].append(torch.cat([prompt, part], dim=-1))
    table = Table("", "distance", "repeats", "bits of level 0", "voiced", "active", box=None)
    for kind, streams in kinds.items():
        distance = group_distance(streams, kinds["real"], groups, 3 * rate)
        sounds = [decoded(codec, stream)[0, 3 * codec.spec.sample_rate :].numpy() for stream in streams]
        voiced, active = np.mean([voicing(sound, codec.spec.sample_rate) for sound in sounds], axis=0)
        repeats = np.mean([float((s[0, 0, 3 * rate :] == s[0, 0, 3 * rate - 1 : -1]).float().mean()) for s in streams])
        bits = np.mean([level_0_bits(lm, stream, 3 * rate) for stream in streams])
        table.add_row(kind, f"{distance:.3f}", f"{repeats:.3f}", f"{bits:.2f}", f"{voiced:.2f}", f"{active:.2f}")
    Console().print(table)
    if arguments.output:
        write_examples(arguments.output, codec, kinds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lm")
    parser.add_argument("dataset")
    parser.add_argument("-n", type=int, default=20, help="recordings")
    parser.add_argument("-b", "--bandwidth", type=float, default=6.0, help="kbps")
    parser.add_argument("--seconds", type=int, default=4, help="of each continuation")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=None)
    parser.add_argument("-o", "--output", type=Path, default=None, help="folder for sound and spectrograms")
    return parser.parse_args()


def recordings(dataset: str, levels: int, num_frames: int, count: int) -> Iterator[torch.Tensor]:
    """Codes [1, K, T] of the first recordings that are long enough."""
    found = 0
    for utterance in read_utterances(dataset, levels):
        if utterance.codes.shape[1] >= num_frames and found < count:
            found += 1
            yield torch.from_numpy(utterance.codes[None, :, :num_frames].astype(np.int64))


def decoded(codec: Codec, stream: torch.Tensor) -> torch.Tensor:
    """[C, S] of codes [1, K, T]."""
    return codec.decode(Encoded(stream, None, stream.shape[-1] * codec.spec.hop_length))[0]


def code_groups(codec: Codec) -> torch.Tensor:
    """[V]: the group of each code of level 0, by k-means of its vectors."""
    vectors = codec.quantizer.decode_level(torch.arange(codec.spec.codebook_size), 0)
    centres = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[:GROUPS]]
    for _ in range(50):
        nearest = torch.cdist(vectors, centres).argmin(dim=1)
        centres = torch.stack([vectors[nearest == group].mean(dim=0) for group in range(GROUPS)]).nan_to_num()
    return nearest


def group_distance(streams: list[torch.Tensor], others: list[torch.Tensor], groups: torch.Tensor, begin: int) -> float:
    """Total variation between the groups of two sets of streams; of a set and itself: between its halves."""
    if streams is others:
        streams, others = streams[::2], streams[1::2]
    shares = [
        torch.bincount(groups[torch.cat([s[0, 0, begin:] for s in some])], minlength=GROUPS).double()
        for some in (streams, others)
    ]
    return float((shares[0] / shares[0].sum() - shares[1] / shares[1].sum()).abs().sum() / 2)


def level_0_bits(lm: TokenLM, stream: torch.Tensor, begin: int) -> float:
    """Bits per code of level 0 behind the prompt."""
    with torch.no_grad():
        logits = lm(stream, scored=slice(1))
    return float(to_bits(code_nats(logits[0, begin:, 0], stream[0, 0, begin:])).mean())


def voicing(sound: Floats, sample_rate: int) -> tuple[float, float]:
    """Shares of voiced and of active windows."""
    length = round(WINDOW_S * sample_rate)
    windows = sound[: len(sound) // length * length].reshape(-1, length)
    windows = windows - windows.mean(axis=1, keepdims=True)
    power = (windows**2).sum(axis=1) + 1e-9
    active = power > power.max() * 1e-4
    spectrum = np.fft.rfft(windows, 2 * length, axis=1)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :length] / power[:, None]
    lags = slice(sample_rate // 400, sample_rate // 70)
    overlap = 1 - np.arange(length) / length  # windows overlap less at longer lags
    voiced = (correlation[:, lags] / overlap[lags]).max(axis=1) > 0.5
    return float((voiced & active).mean()), float(active.mean())


def write_examples(directory: Path, codec: Codec, kinds: dict[str, list[torch.Tensor]]) -> None:
    """The first three recordings as they went on, and as the model did."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in ("real", "generated"):
        for number, stream in enumerate(kinds[kind][:3]):
            waveform = decoded(codec, stream)
            write_audio(directory / f"{number}-{kind}.wav", waveform, codec.spec.sample_rate)
            sound = waveform[0].numpy()
            level = reference_level(sound, codec.spec.sample_rate)
            pixels = spectrogram_pixels(sound, codec.spec.sample_rate, level)
            Image.fromarray(pixels).save(directory / f"{number}-{kind}.png")


if __name__ == "__main__":
    main()
