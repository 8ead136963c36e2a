"""The measures of generated speech say what they claim."""

import numpy as np
import pytest
import torch

from benchmarks.generation_likeness import group_distance, voicing

RATE = 24000


def test_voiced_sound_is_told_from_noise_and_silence():
    time = np.arange(2 * RATE) / RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 10)).astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    assert voicing(voice, RATE) == pytest.approx((1, 1))
    assert voicing(noise, RATE)[0] < 0.1
    half = np.concatenate([voice, np.zeros_like(voice)])
    assert voicing(half, RATE) == pytest.approx((0.5, 0.5), abs=0.02)


def test_distance_is_one_for_strangers_and_none_for_twins():
    groups = torch.tensor([0, 0, 1, 1])
    low, high = torch.zeros(1, 1, 50, dtype=torch.int64), torch.full((1, 1, 50), 3)
    assert group_distance([low], [high], groups, 0) == 1
    assert group_distance([low], [low.clone()], groups, 0) == 0
    streams = [low, high]
    assert group_distance(streams, streams, groups, 0) == 1  # of a set and itself: of its halves
