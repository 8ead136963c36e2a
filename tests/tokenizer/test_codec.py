"""Laws of every codec, whichever family it is of."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import make_codec, tiny_spec
from tokenizer import AudioError, CodesError, Encoded, codec

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
    pieces.append(tiny_codec.decode_flush(state)[0])
    torch.testing.assert_close(torch.cat(pieces, dim=-1), tiny_codec.decode(encoded), atol=1e-5, rtol=0)


@given(lengths=st.lists(st.integers(1, 60) | st.integers(1, 700), min_size=1, max_size=6))
@hold_fixture
def test_codes_do_not_depend_on_the_batch(tiny_codec, waveform, lengths):
    """Each item of a ragged batch gets exactly the codes that it gets alone, its last partial frame included."""
    items = [waveform[:, 50 * i : 50 * i + length] for i, length in enumerate(lengths)]
    for item, encoded in zip(items, tiny_codec.encode_batch(items), strict=True):
        assert torch.equal(encoded.codes, tiny_codec.encode(item).codes)
        assert encoded.num_samples == item.shape[-1]


def test_a_large_batch_goes_through_pytorch_in_passes(tiny_codec, waveform, monkeypatch):
    """No more of it at a time than a pass may hold, whatever the batch: memory does not grow with it, codes stay."""
    plain = tiny_codec.with_precision("plain")
    encoder, sizes = plain._networks.encoder, []
    step = encoder.step
    monkeypatch.setattr(codec, "PASS_SECONDS", 500 / plain.spec.sample_rate)
    monkeypatch.setattr(encoder, "step", lambda samples, state: sizes.append(samples.shape) or step(samples, state))
    items = [waveform[:, 10 * i : 10 * i + 90 + 7 * (i % 5)] for i in range(23)] + [waveform[:, :1003]]
    encoded = plain.encode_batch(items)
    assert len(sizes) > 5
    assert all(rows == 1 or rows * samples <= 500 for rows, _, samples in sizes)
    assert max(rows for rows, _, _ in sizes) > 2
    for item, own in zip(items, encoded, strict=True):
        assert torch.equal(own.codes, plain.encode(item).codes)


@given(block=st.integers(1, 30000))
@hold_fixture
def test_blocks_give_the_codes_of_the_whole(tiny_codec, waveform, block):
    """A waveform that arrives in blocks gets exactly the codes of the file, and answers come in blocks as well."""
    whole, in_blocks = tiny_codec.encode(waveform), tiny_codec.encode_blocks(waveform.split(block, dim=-1))
    assert torch.equal(in_blocks.codes, whole.codes)
    assert (in_blocks.num_samples, in_blocks.source_num_samples) == (whole.num_samples, whole.source_num_samples)
    assert torch.equal(torch.cat(list(tiny_codec.decode_blocks(whole)), dim=-1), tiny_codec.decode(whole))


def test_nothing_in_blocks_is_refused(tiny_codec):
    """As an empty waveform is."""
    for blocks in ([], [torch.zeros(1, 0)]):
        with pytest.raises(AudioError, match="no samples"):
            tiny_codec.encode_blocks(blocks)


def test_long_audio_goes_through_in_steps(tiny_codec, waveform, monkeypatch):
    """Steps that bound the memory change no code and no sample."""
    encoded = tiny_codec.encode(waveform)
    decoded = tiny_codec.decode(encoded)
    monkeypatch.setattr(type(tiny_codec), "_frames_per_step", 100)
    torch.testing.assert_close(tiny_codec.encode(waveform).codes, encoded.codes)
    torch.testing.assert_close(tiny_codec.decode(encoded), decoded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["seanet", "mirrored", "patch"])
def test_the_future_changes_nothing(kind, waveform):
    """Causal both ways: frames before a change keep their codes, hops before a changed code keep their samples."""
    tiny_codec = make_codec(tiny_spec(kind))
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
    assert tiny_codec.decode(encoded, sample_rate=16000).shape == (1, 1, 16000)
    stereo = tiny_codec.encode(waveform[:, :16000].repeat(2, 1), sample_rate=16000)
    assert torch.equal(stereo.codes, encoded.codes)


@given(num_samples=st.integers(1, 400), rate_in=st.integers(8000, 50000), rate_out=st.integers(8000, 50000))
@settings(max_examples=30, deadline=None)
def test_lengths_survive_any_sample_rate(num_samples, rate_in, rate_out):
    """Back at the rate it came with, audio has its length to the sample; at another one, the same duration."""
    codec = make_codec(tiny_spec("patch"))
    encoded = codec.encode(torch.zeros(1, num_samples), sample_rate=rate_in)
    assert codec.decode(encoded, sample_rate=rate_in).shape[-1] == num_samples
    assert codec.decode(encoded, sample_rate=rate_out).shape[-1] == -(-num_samples * rate_out // rate_in)


def test_the_codec_states_its_latency(tiny_codec):
    """A causal codec answers after each hop; one that looks ahead after as much more as its layers look at."""
    hop = tiny_codec.spec.hop_length
    if tiny_codec.spec.family != "dac":
        assert tiny_codec.algorithmic_latency_s == hop / 24000
        return
    needed = round(tiny_codec.algorithmic_latency_s * 24000)
    state, decoding, heard, known = tiny_codec.encode_state(), tiny_codec.decode_state(), 0, 0
    while known < 100 * hop:  # past the start, one hop at a time
        codes, state = tiny_codec.encode_step(torch.zeros(1, 1, hop), state)
        samples, decoding = tiny_codec.decode_step(codes, decoding)
        heard, known = heard + hop, known + samples.shape[-1]
    assert heard - known == needed - hop


def test_only_the_start_is_held_back(waveform):
    """Mirrored padding: nothing until the first frames are there, then all of them, then every frame at once."""
    codec = make_codec(tiny_spec("mirrored"))
    state, counts = codec.encode_state(), []
    for hop in waveform[None, :, :160].split(8, dim=-1):
        codes, state = codec.encode_step(hop, state)
        counts.append(codes.shape[-1])
    start = codec.start_frames
    assert counts == [0] * (start - 1) + [start] + [1] * (20 - start)


def test_an_ended_stream_begins_anew(tiny_codec, waveform):
    """The state that flushing returns is a fresh one."""
    codes = []
    state, decoding = tiny_codec.encode_state(), tiny_codec.decode_state()
    for _ in range(2):
        first, state = tiny_codec.encode_step(waveform[None, :, :803], state)
        last, state = tiny_codec.encode_flush(state)
        codes.append(torch.cat([first, last], dim=-1))
    assert torch.equal(*codes)
    waveforms = []
    for _ in range(2):
        begun, decoding = tiny_codec.decode_step(codes[0], decoding)
        ended, decoding = tiny_codec.decode_flush(decoding)
        waveforms.append(torch.cat([begun, ended], dim=-1))
    assert torch.equal(*waveforms)
    assert waveforms[0].shape == (1, 1, 808)


def test_one_codebook_is_plain_vector_quantization(waveform):
    """The residual of a single level is thrown away: its codes are the nearest entries."""
    codec = make_codec(dataclasses.replace(tiny_spec("seanet"), num_codebooks=1))
    codes = codec.encode(waveform).codes
    nearest = torch.cdist(codec.encoder(waveform[None, :, :23992])[0].T, codec.quantizer.codebooks[0]).argmin(1)
    assert codes.shape == (1, 1, 3000)
    assert torch.equal(codes[0, 0, :2999], nearest)


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
        (torch.zeros(2, 100), r"\[1, S\].*pass sample_rate"),
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
        (torch.zeros(1, 4, 6, dtype=torch.int64), "40 samples are 5 frames, the codes have 6"),
    ],
    ids=["too large", "negative", "too many levels", "no batch", "floats", "too many frames"],
)
def test_bad_codes_are_refused(tiny_codec, bad, reason):
    """The error says what is wrong and what is allowed."""
    with pytest.raises(CodesError, match=reason):
        tiny_codec.decode(Encoded(bad, None, 40))


def test_a_negative_length_is_refused(tiny_codec):
    """No codes are no reason to take it."""
    with pytest.raises(CodesError, match="negative: -3"):
        tiny_codec.decode(Encoded(torch.zeros(1, 4, 0, dtype=torch.int64), None, -3))
    assert tiny_codec.decode(Encoded(torch.zeros(1, 4, 0, dtype=torch.int64), None, 0)).shape == (1, 1, 0)


def test_a_sample_rate_of_zero_is_refused(tiny_codec, waveform):
    """It is not taken for "the codec's own"."""
    with pytest.raises(AudioError, match="positive integer"):
        tiny_codec.encode(waveform, sample_rate=0)
    with pytest.raises(AudioError, match="positive integer"):
        tiny_codec.encode_blocks([waveform], sample_rate=0)


def test_a_bandwidth_that_the_codec_lacks_lists_those_it_has(tiny_codec, waveform):
    """The message is the way out."""
    with pytest.raises(ValueError, match="choose 24, 48"):
        tiny_codec.encode(waveform, bandwidth_kbps=5.0)
