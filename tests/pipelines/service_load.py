"""Callers of a service who keep asking, and check that each answer is their own."""

import threading
import time
from dataclasses import dataclass

import httpx2
import numpy as np
import torch

from tokenizer import Encoded, load_codec


def random_codes(seed, frames, levels=4, size=16):
    """[K, T] of a tiny codec."""
    return np.random.default_rng(seed).integers(0, size, (levels, frames), dtype=np.uint16)


def offline(directory, codes):
    """[S] float32: what the service must give for these codes."""
    codec = load_codec(directory)
    whole = torch.from_numpy(codes.astype(np.int64))[None]
    num_samples = codes.shape[1] * codec.spec.hop_length
    return codec.decode(Encoded(codes=whole, scales=None, num_samples=num_samples))[0, 0].numpy()


def frames(codes):
    """Codes [K, T] as a stream sends them: [T, K] uint16."""
    return np.ascontiguousarray(codes.T).astype("<u2").tobytes()


@dataclass(frozen=True)
class Answer:
    """One answer: when it came, and "" or what was wrong with it."""

    at: float
    fault: str


class Callers:
    """Threads that each send one request after the other, with codes of their own.

    Args:
        url: of the service.
        directory: of its codec.
        count: threads.
    """

    def __init__(self, url, directory, count=4):
        self.answers = []
        self._url, self._going = url, True
        self._threads = []
        for seed in range(count):
            codes = random_codes(seed, 40 + seed)
            expected = offline(directory, codes)
            self._threads.append(threading.Thread(target=self._ask, args=(codes.tolist(), expected)))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._going = False
        for thread in self._threads:
            thread.join()

    @property
    def faults(self):
        return [answer for answer in self.answers if answer.fault]

    def wait_for(self, count, timeout_s=30):
        """Until so many good answers more have come."""
        wanted, deadline = len(self.answers) - len(self.faults) + count, time.monotonic() + timeout_s
        while len(self.answers) - len(self.faults) < wanted:
            assert time.monotonic() < deadline, self.faults[-3:]
            time.sleep(0.02)

    def _ask(self, codes, expected):
        with httpx2.Client(timeout=30) as client:
            while self._going:
                fault = self._fault(client, codes, expected)
                self.answers.append(Answer(time.monotonic(), fault))

    def _fault(self, client, codes, expected):
        request = {"codes": codes, "response_format": "pcm"}
        try:
            answer = client.post(f"{self._url}/v1/audio/decode", json=request)
        except httpx2.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        if answer.status_code != 200:
            return f"{answer.status_code}: {answer.text[:200]}"
        samples = np.frombuffer(answer.content, "<i2") / 32767
        if samples.shape != expected.shape or np.abs(samples - np.clip(expected, -1, 1)).max() > 1e-3:
            return f"not what was asked for: {samples.shape}"
        return ""
