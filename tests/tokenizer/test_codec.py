"""Laws of every codec, whichever family it is of."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import make_codec, tiny_spec
from tokenizer import AudioError, CodesError, Encoded

CUTS = st.lists(st.integers(0, 40), min_size=1, max_size=12)
hold_fixture = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encode_in_chunks(codec, waveform, lengths):
    """Feed a stream in chunks of these lengths, over and over until it ends."""
    state, pieces, position = codec.encode_state(waveform.shape[0]), [], 0
    for length in itertools.cycle([*lengths, 7]):
        codes, state = codec.encode_step(waveform[..., position : position + length], state)
        pieces.append(codes)
        position += length
        if position >= waveform.shape[-1]:
            break
    pieces.append(codec.encode_flush(state)[0])
    return torch.cat(pieces, dim=-1)


def test_decoded_audio_is_as_long_as_the_original(tiny_codec, waveform):
    """The last frame is filled with silence, and decoding cuts it off again."""
    for num_samples in (1, 7, 8, 9, 1000):
        encoded = tiny_codec.encode(waveform[:, :num_samples])
        assert encoded.codes.shape == (1, 4, -(-num_samples // 8))
        assert tiny_codec.decode(encoded).shape == (1, 1, num_samples)


def test_codes_vary(tiny_codec, waveform):
    """The fixture is not degenerate: every level uses several entries, or the laws below would say nothing."""
    codes = tiny_codec.encode(waveform).codes[0]
    assert min(len(level.unique()) for level in codes) >= 4


@given(lengths=CUTS)
@hold_fixture
def test_encoding_does_not_depend_on_chunking(tiny_codec, waveform, lengths):
    """However a stream is cut, empty chunks included, the codes are those of the whole file."""
    part = waveform[None, :, :803]
    torch.testing.assert_close(encode_in_chunks(tiny_codec, part, lengths), tiny_codec.encode(part).codes)


@given(lengths=CUTS)
@hold_fixture
def test_decoding_does_not_depend_on_chunking(tiny_codec, waveform, lengths):
    """However a stream of codes is cut, the samples are those of one whole decode."""
    encoded = tiny_codec.encode(waveform[None, :, :800])
    state, pieces, position = tiny_codec.decode_state(), [], 0
    for length in itertools.cycle([*lengths, 5]):
        samples, state = tiny_codec.decode_step(encoded.codes[..., position : position + length], state)
        pieces.append(samples)
        position += length
        if position >= encoded.codes.shape[-1]:
            break
    torch.testing.assert_close(torch.cat(pieces, dim=-1), tiny_codec.decode(encoded), atol=1e-5, rtol=0)


@given(lengths=st.lists(st.integers(1, 700), min_size=1, max_size=6))
@hold_fixture
def test_codes_do_not_depend_on_the_batch(tiny_codec, waveform, lengths):
    """Each item of a ragged batch gets exactly the codes that it gets alone, its last partial frame included."""
    items = [waveform[:, 50 * i : 50 * i + length] for i, length in enumerate(lengths)]
    for item, codes in zip(items, tiny_codec.encode_batch(items), strict=True):
        torch.testing.assert_close(codes, tiny_codec.encode(item).codes[0])


def test_streams_side_by_side_do_not_touch(tiny_codec, waveform):
    """Two streams in one batched state decode as each does alone."""
    codes = torch.cat([tiny_codec.encode(part).codes for part in (waveform[:, :800], waveform[:, 9000:9800])])
    state, pieces = tiny_codec.decode_state(batch_size=2), []
    for chunk in codes.split(9, dim=-1):
        samples, state = tiny_codec.decode_step(chunk, state)
        pieces.append(samples)
    both = torch.cat(pieces, dim=-1)
    for row in range(2):
        alone = tiny_codec.decode(Encoded(codes[row : row + 1], None, both.shape[-1]))
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=0)


def test_reflect_padding_works_on_whole_files(waveform):
    """As the EnCodec weights need it: same lengths, ragged batches as alone, and a clear refusal to stream."""
    codec = make_codec(tiny_spec("seanet", pad_mode="reflect"))
    encoded = codec.encode(waveform)
    assert encoded.codes.shape == (1, 4, 3000)
    assert codec.decode(encoded).shape == (1, 1, 23999)
    short, long = codec.encode_batch([waveform[:, :100], waveform])
    assert torch.equal(long, encoded.codes[0])
    assert torch.equal(short, codec.encode(waveform[:, :100]).codes[0])
    with pytest.raises(ValueError, match="reflect"):
        codec.encode_state()


def test_long_audio_goes_through_in_steps(tiny_codec, waveform, monkeypatch):
    """Steps that bound the memory change no code and no sample."""
    encoded = tiny_codec.encode(waveform)
    decoded = tiny_codec.decode(encoded)
    monkeypatch.setattr(type(tiny_codec), "_frames_per_step", lambda _: 100)
    torch.testing.assert_close(tiny_codec.encode(waveform).codes, encoded.codes)
    torch.testing.assert_close(tiny_codec.decode(encoded), decoded, atol=1e-5, rtol=0)


def test_the_future_changes_nothing(tiny_codec, waveform):
    """Causal both ways: frames before a change keep their codes, hops before a changed code keep their samples."""
    changed = waveform.clone()
    changed[:, 1600:] = -changed[:, 1600:]
    before, after = tiny_codec.encode(waveform).codes, tiny_codec.encode(changed).codes
    assert torch.equal(before[..., :200], after[..., :200])
    assert not torch.equal(before[..., 200:], after[..., 200:])
    mixed = torch.cat([before[..., :200], after[..., 200:]], dim=-1)
    first, second = (tiny_codec.decode(Encoded(codes, None, waveform.shape[-1])) for codes in (before, mixed))
    torch.testing.assert_close(first[..., :1600], second[..., :1600], atol=1e-5, rtol=0)


def test_lower_bandwidths_are_prefixes(tiny_codec, waveform):
    """Residual quantization is hierarchical: fewer levels are the first levels."""
    full = tiny_codec.encode(waveform)
    half_kbps = tiny_codec.spec.level_kbps * 2
    half = tiny_codec.encode(waveform, bandwidth_kbps=half_kbps)
    assert torch.equal(half.codes, full.codes[:, :2])
    torch.testing.assert_close(tiny_codec.decode(full, bandwidth_kbps=half_kbps), tiny_codec.decode(half))


def test_other_sample_rates_are_resampled(tiny_codec, waveform):
    """Saying the rate of the waveform is enough; the length becomes that at the codec's rate."""
    encoded = tiny_codec.encode(waveform[:, :16000], sample_rate=16000)
    assert encoded.num_samples == 24000


def test_the_identity_follows_weights_and_spec(tiny_codec):
    """One changed weight is another codec."""
    import copy

    other = copy.deepcopy(tiny_codec)
    other._sha256 = None
    assert other.sha256 == tiny_codec.sha256
    other._sha256 = None
    next(other.parameters()).flatten()[0] += 0.5
    assert other.sha256 != tiny_codec.sha256


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (torch.zeros(1, 0), "no samples"),
        (torch.zeros(2, 100), r"\[1, S\]"),
        (torch.zeros(100), r"\[1, S\]"),
        (torch.full((1, 100), torch.nan), "NaN"),
        (torch.full((1, 100), torch.inf), "infinite"),
        (torch.zeros(1, 100, dtype=torch.int16), "floats"),
    ],
    ids=["empty", "stereo", "flat", "nan", "infinite", "integers"],
)
def test_bad_waveforms_are_refused(tiny_codec, bad, reason):
    """The error says what is wrong."""
    with pytest.raises(AudioError, match=reason):
        tiny_codec.encode(bad)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (torch.full((1, 4, 5), 16), "0 to 15"),
        (torch.full((1, 4, 5), -1), "0 to 15"),
        (torch.zeros(1, 5, 5, dtype=torch.int64), "1 to 4"),
        (torch.zeros(4, 5, dtype=torch.int64), "1 to 4"),
        (torch.zeros(1, 4, 5), "integers"),
        (torch.zeros(1, 4, 6, dtype=torch.int64), "6 frames"),
    ],
    ids=["too large", "negative", "too many levels", "no batch", "floats", "too many frames"],
)
def test_bad_codes_are_refused(tiny_codec, bad, reason):
    """The error says what is wrong and what is allowed."""
    with pytest.raises(CodesError, match=reason):
        tiny_codec.decode(Encoded(bad, None, 40))


def test_a_bandwidth_that_the_codec_lacks_lists_those_it_has(tiny_codec, waveform):
    """The message is the way out."""
    with pytest.raises(ValueError, match="choose 24, 48"):
        tiny_codec.encode(waveform, bandwidth_kbps=5.0)
