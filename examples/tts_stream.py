"""A language model of codes speaks, and its words are heard while it still thinks.

    quantone serve speech_24khz &
    python examples/tts_stream.py prompt.wav spoken.wav --seconds 5

The model runs here, the codec in the service: a TTS server is built like this, with its own model and a player or a
socket in the place of the file.
"""

from __future__ import annotations

import argparse
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lm_head import Sampling, generate, load_lm
from pipelines.clients.decode_client import DecodeClient


def words(
    lm: Any, prompt: NDArray[np.integer[Any]], num_frames: int, sampling: Sampling, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Codes [K, n] as the model makes them: those of the prompt first, so that no seam lies between it and the rest."""
    yield prompt
    for frames in generate(lm, torch.from_numpy(prompt)[None], num_frames, sampling=sampling, seed=seed):
        yield frames[0].cpu().numpy()


def speak(client: DecodeClient, arguments: argparse.Namespace) -> None:
    """Continue a recording, and write it while it is made."""
    lm, (card, *_) = load_lm(arguments.lm), client.codecs()
    levels = min(lm.config.num_codebooks, card["num_codebooks"])
    encoded = client.encode(arguments.prompt, bandwidth_kbps=levels * card["level_kbps"])
    prompt = encoded.codes[
        :, : encoded.num_samples // card["hop_length"]
    ]  # whole frames: no silence before what follows
    sampling = Sampling(temperature=arguments.temperature, top_k=arguments.top_k)
    num_frames = max(1, round(arguments.seconds * card["frame_rate"]))
    begin, written = time.perf_counter(), 0
    with wave.open(str(arguments.output), "wb") as file:
        file.setnchannels(card["channels"])
        file.setsampwidth(2)
        file.setframerate(card["sample_rate"])
        chunks = words(lm, prompt, num_frames, sampling, arguments.seed)
        for samples in client.decode_chunks(chunks, num_codebooks=levels, pcm="s16le"):
            if written == 0:
                print(f"first sound after {1000 * (time.perf_counter() - begin):.0f} ms")
            file.writeframes(samples.T.tobytes())
            written += samples.shape[1]
    seconds = written / card["sample_rate"]
    print(f"{arguments.output}: {seconds:.2f} s of sound in {time.perf_counter() - begin:.2f} s")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", type=Path, help="a few seconds of speech to go on from")
    parser.add_argument("output", type=Path, help="the .wav to write")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--token", default=None)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--lm", default="speech_24khz", help="bundled name or directory of a language model")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args(arguments)
    with DecodeClient(parsed.url, parsed.token) as client:
        speak(client, parsed)


if __name__ == "__main__":
    main()
