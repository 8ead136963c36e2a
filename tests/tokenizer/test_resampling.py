"""Any integer rate to any other: exact lengths, torchaudio's samples, and streams that are cut as one likes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import speech_like
from tokenizer import AudioError, mix_channels, resample, sinc_filter
from tokenizer.resampling import StreamingResampler
from tokenizer.torchaudio_import import import_torchaudio

RATES = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000]


def tone(frequency: float, rate: int, num_samples: int) -> torch.Tensor:
    """[S] a sine at half scale."""
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(num_samples, dtype=torch.float64) / rate).float()


def streamed(chunks, from_rate, to_rate, channels=1):
    """What a stream gives for each of its chunks, and at its end."""
    resampler = StreamingResampler(from_rate, to_rate)
    state = resampler.initial_state(channels)
    for chunk in chunks:
        piece, state = resampler.step(chunk, state)
        yield piece
    yield resampler.finish(state)


@pytest.mark.parametrize("from_rate", RATES)
def test_ordinary_rates_give_torchaudios_samples(from_rate):
    """Two channels, several blocks long: equal to one call of torchaudio to 1e-5."""
    waveform = torch.from_numpy(speech_like(0.3, from_rate)).repeat(2, 1) * torch.tensor([[1.0], [-0.5]])
    for to_rate in (16000, 24000, 48000):
        expected = import_torchaudio().functional.resample(waveform, from_rate, to_rate)
        torch.testing.assert_close(resample(waveform, from_rate, to_rate), expected, atol=1e-5, rtol=0)


@given(from_rate=st.integers(1, 200_000), to_rate=st.integers(1, 200_000), num_samples=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_lengths_are_exact_for_any_integer_rates(from_rate, to_rate, num_samples):
    """ceil(S * to / from) in integers, with primes and extremes, and for nothing at all."""
    expected = -(-num_samples * to_rate // from_rate)
    waveform = torch.full((2, num_samples), 0.25)
    resampled = resample(waveform, from_rate, to_rate)
    assert resampled.shape == (2, expected)
    assert bool(resampled.isfinite().all())


def test_an_odd_rate_needs_no_giant_table():
    """44101 to 24000 shares no factor, its table would hold a billion weights: a tone still arrives as itself."""
    waveform = tone(440.0, 44101, 44101)
    sinc_filter._table.cache_clear()
    resampled = resample(waveform, 44101, 24000)
    assert sinc_filter._table.cache_info().misses == 0
    torch.testing.assert_close(resampled[100:-100], tone(440.0, 24000, 24000)[100:-100], atol=2e-3, rtol=0)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 24000), (16000, 24000), (48000, 16000), (3, 2)])
def test_the_table_and_the_formula_agree(from_rate, to_rate, monkeypatch):
    """Both ways of computing the filter give the same samples, so that no rate is treated differently."""
    waveform = torch.from_numpy(speech_like(0.2, 24000))[None]
    by_table = resample(waveform, from_rate, to_rate)
    monkeypatch.setattr(sinc_filter, "_MAX_KERNEL", 0)
    torch.testing.assert_close(resample(waveform, from_rate, to_rate), by_table, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 24000), (24000, 48000), (44101, 24000), (24000, 23999)])
def test_blocks_change_no_sample(from_rate, to_rate, monkeypatch):
    """Long audio is cut into blocks to bound the memory; where they meet, nothing is heard or measured."""
    waveform = torch.from_numpy(speech_like(0.5, 24000))[None]
    whole = resample(waveform, from_rate, to_rate)
    monkeypatch.setattr(sinc_filter, "_BLOCK_SAMPLES", 2000)
    torch.testing.assert_close(resample(waveform, from_rate, to_rate), whole, atol=1e-6, rtol=0)


@given(
    rates=st.sampled_from(
        [(16000, 24000), (44100, 24000), (24000, 48000), (44101, 24000), (24000, 44101), (8000, 8000)]
    ),
    lengths=st.lists(st.integers(0, 3000), max_size=12),
    channels=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_a_stream_gives_the_samples_of_the_whole_however_it_is_cut(rates, lengths, channels):
    """Bit for bit, with empty chunks, with none, and with blocks that end inside chunks."""
    waveform = torch.randn(channels, sum(lengths), generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinc_filter, "_BLOCK_SAMPLES", 2000)
        pieces = list(streamed(waveform.split(lengths, dim=-1) if lengths else [], *rates, channels=channels))
        assert torch.equal(torch.cat(pieces, dim=-1), resample(waveform, *rates))


def test_a_stream_is_resampled_exactly_at_its_real_block_length():
    """Blocks and memory alignment as in use: minutes of sound in uneven chunks are bit for bit those of one call."""
    waveform = torch.from_numpy(speech_like(40, 16000))[None]
    pieces = list(streamed(waveform.split(12345, dim=-1), 16000, 24000))
    assert torch.equal(torch.cat(pieces, dim=-1), resample(waveform, 16000, 24000))


@pytest.mark.parametrize("rates", [(16000, 24000), (44101, 24000), (24000, 24000)], ids=str)
def test_a_stream_holds_a_few_seconds_however_long_it_is(rates):
    """What waits in the state is bounded, and owns no more memory than it shows."""
    resampler = StreamingResampler(*rates)
    state = resampler.initial_state(1)
    for _ in range(100):
        _, state = resampler.step(torch.zeros(1, 30_000), state)
        assert state.held.shape[-1] < 100_000
        assert state.held.untyped_storage().nbytes() == 4 * state.held.numel()


def test_many_streams_share_a_resampler():
    """The state is the caller's: streams that take turns do not hear each other."""
    resampler = StreamingResampler(48000, 24000)
    waveforms = torch.randn(2, 1, 5000)
    states = [resampler.initial_state(1)] * 2
    for part in range(0, 5000, 1000):
        for index, state in enumerate(states):
            _, states[index] = resampler.step(waveforms[index, :, part : part + 1000], state)
    for waveform, state in zip(waveforms, states, strict=True):
        assert torch.equal(resampler.finish(state), resample(waveform, 48000, 24000))


def test_chunks_of_another_shape_are_refused():
    """A stream keeps its number of channels, and a chunk cannot grow without bounds."""
    resampler = StreamingResampler(16000, 24000)
    for bad in (torch.zeros(2, 10), torch.zeros(10)):
        with pytest.raises(AudioError, match=r"\[1, samples\]"):
            resampler.step(bad, resampler.initial_state(1))
    resampler = StreamingResampler(1, 24000)
    with pytest.raises(AudioError, match="too many"):
        resampler.step(torch.zeros(1, 100_000), resampler.initial_state(1))


def test_channels_and_batches_are_resampled_each_for_itself():
    """Any leading shape is kept."""
    waveform = torch.from_numpy(speech_like(0.3, 24000))[:7200].reshape(2, 3, 1200)
    resampled = resample(waveform, 24000, 16000)
    assert resampled.shape == (2, 3, 800)
    torch.testing.assert_close(resampled[1, 2], resample(waveform[1, 2], 24000, 16000), atol=1e-6, rtol=0)


def test_equal_rates_change_nothing():
    """The very same samples."""
    waveform = torch.randn(1, 100)
    assert torch.equal(resample(waveform, 24000, 24000), waveform)


def test_a_table_made_in_inference_mode_serves_training_too():
    """The filter is cached: who asks first must not decide whether gradients can pass."""
    sinc_filter._table.cache_clear()
    with torch.inference_mode():
        resample(torch.randn(1, 300), 48000, 24000)
    waveform = torch.randn(1, 300, requires_grad=True)
    resample(waveform, 48000, 24000).square().sum().backward()
    assert waveform.grad is not None


@pytest.mark.parametrize("rates", [(0, 24000), (24000, -1), (44100.0, 24000)], ids=str)
def test_rates_that_are_no_positive_integers_are_refused(rates):
    """The error names the rate."""
    with pytest.raises(AudioError, match="positive integer"):
        resample(torch.zeros(1, 10), *rates)


def test_a_small_file_that_claims_one_hertz_is_refused():
    """It would become 24,000 times as long: an error, not gigabytes."""
    with pytest.raises(AudioError, match="too many"):
        resample(torch.zeros(1, 100_000), 1, 24000)


def test_mixing_keeps_every_speaker():
    """Equal counts pass unchanged; otherwise each output channel is the mean of all inputs."""
    stereo = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert torch.equal(mix_channels(stereo, 2), stereo)
    assert mix_channels(stereo, 1).tolist() == [[0.5, -0.5]]
    assert mix_channels(stereo[:1], 2).tolist() == [[1.0, 0.0], [1.0, 0.0]]
    for bad, channels in ((torch.zeros(3), 1), (torch.zeros(0, 3), 1), (stereo, 0)):
        with pytest.raises(AudioError, match="cannot mix"):
            mix_channels(bad, channels)
