"""The original EnCodec files: read, written, exchanged with the `encodec` package, and refused where damaged."""

import dataclasses
import io

import numpy as np
import pytest
import torch

from lm_head.ecdc import (
    EcdcFile,
    EcdcSegment,
    compress_ecdc,
    decompress_ecdc,
    read_ecdc,
    write_ecdc,
)
from lm_head.ecdc_header import ECDC_SPECS
from lm_head.encodec_lm import load_encodec_lm
from tests.conftest import make_codec, speech_like, tiny_spec
from tests.lm_head.encodec_models import CONTEXT_FRAMES, original_codec, original_lm
from tests.tokenizer.reference_models import import_encodec, randomize
from tokenizer import BitstreamError, CheckpointError, Codec, CodesError, Encoded, load_codec
from tokenizer.segments import frames_by_segment

NAMES = ["encodec_24khz", "encodec_48khz"]
WITH_LM = pytest.mark.parametrize("use_lm", [False, True], ids=["packed", "with LM"])


class Pair:
    """A codec and a language model of the package, and the same language model as ours."""

    def __init__(self, name, folder):
        self.name, self.spec, self.folder = name, ECDC_SPECS[name], folder
        self.codec = original_codec(name)
        reference = original_lm(num_codebooks=8, context_frames=CONTEXT_FRAMES[name])
        torch.save(reference.state_dict(), folder / f"{name}.th")
        self.lm = load_encodec_lm(folder / f"{name}.th", context_frames=CONTEXT_FRAMES[name])
        self.codec.get_lm_model = lambda: reference

    def compress(self, seconds, num_codebooks, *, use_lm):
        """A file as the package writes it, and the frames that went into it."""
        from encodec.compress import compress_to_file

        channels = [speech_like(seconds, self.spec.sample_rate, seed=seed) for seed in range(self.spec.channels)]
        waveform = torch.from_numpy(np.stack(channels))
        self.codec.set_target_bandwidth(self.codec.target_bandwidths[num_codebooks - 1])
        stream = io.BytesIO()
        compress_to_file(self.codec, waveform, stream, use_lm=use_lm)
        return stream.getvalue(), self.codec.encode(waveform[None]), waveform.shape[-1]

    def decompress(self, data, monkeypatch):
        """The frames that the package finds in a file, and the samples that it makes of them."""
        from encodec.compress import MODELS, decompress_from_file

        found = []
        monkeypatch.setitem(MODELS, self.name, lambda: self.codec)
        decode = self.codec.decode
        with monkeypatch.context() as patch:
            patch.setattr(self.codec, "decode", lambda frames: found.extend(frames) or decode(frames))
            waveform, _ = decompress_from_file(io.BytesIO(data))
        return found, waveform


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def mono(tmp_path_factory):
    return Pair("encodec_24khz", tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def pair_48khz(tmp_path_factory):
    return Pair("encodec_48khz", tmp_path_factory.mktemp("lm"))


def random_file(name, seconds, num_codebooks, seed=0):
    spec, rng = ECDC_SPECS[name], np.random.default_rng(seed)
    num_samples = round(seconds * spec.sample_rate)
    frames = frames_by_segment(spec, num_samples)
    codes = [rng.integers(0, 1024, (num_codebooks, count), dtype=np.uint16) for count in frames]
    scales = [float(np.float32(rng.uniform(0.01, 1))) if spec.has_scales else None for _ in frames]
    return EcdcFile(name, num_samples, tuple(map(EcdcSegment, codes, scales)))


def written(file, lm=None):
    stream = io.BytesIO()
    write_ecdc(stream, file, lm=lm)
    return stream.getvalue()


def read(data, lm=None):
    return read_ecdc(io.BytesIO(data), lm=lm)


def assert_same(file, frames):
    """A file of ours holds the package's frames: codes [1, K, T] and scales."""
    for segment, (codes, scale) in zip(file.segments, frames, strict=True):
        assert segment.codes.tolist() == codes[0].tolist()
        assert segment.scale == (None if scale is None else scale.item())


@WITH_LM
@pytest.mark.parametrize(("seconds", "num_codebooks"), [(0.211, 2), (0.35, 8), (1.113, 3)], ids=str)
def test_files_of_the_package_are_read_and_written(pair, seconds, num_codebooks, use_lm):
    """What it encoded is what we find, and written again it is the same file, byte for byte."""
    data, frames, num_samples = pair.compress(seconds, num_codebooks, use_lm=use_lm)
    file = read(data, pair.lm)
    assert (file.model_name, file.num_samples) == (pair.name, num_samples)
    assert len(file.segments) == (2 if seconds > 1 and pair.name == "encodec_48khz" else 1)
    assert_same(file, frames)
    assert len(np.unique(file.segments[0].codes)) > 5, "the test says nothing about equal codes"
    assert written(file, pair.lm if use_lm else None) == data


@WITH_LM
@pytest.mark.parametrize(("seconds", "num_codebooks"), [(0.2, 4), (1.05, 2)], ids=str)
def test_the_package_reads_our_files(pair, seconds, num_codebooks, use_lm, monkeypatch):
    """It finds the codes and scales that we wrote, and decodes as many samples as there are."""
    file = random_file(pair.name, seconds, num_codebooks)
    frames, waveform = pair.decompress(written(file, pair.lm if use_lm else None), monkeypatch)
    assert_same(file, frames)
    assert waveform.shape == (pair.spec.channels, file.num_samples)


@WITH_LM
@pytest.mark.parametrize("name", NAMES)
def test_encoded_codes_make_the_trip(name, use_lm, tmp_path):
    """Codes of a codec to bytes and back: every segment, every scale, every sample counted."""
    spec = ECDC_SPECS[name]
    with torch.device("meta"):
        codec = Codec(spec, name="any")
    lm = Pair(name, tmp_path).lm if use_lm else None
    num_samples = int(2.2 * spec.sample_rate) + 7
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(1024, (1, 2, spec.num_frames(num_samples)), generator=generator)
    scales = torch.rand(1, spec.num_segments(num_samples), generator=generator) if spec.has_scales else None
    data = compress_ecdc(Encoded(codes, scales, num_samples), codec, lm)
    found = decompress_ecdc(data, codec, lm)
    assert torch.equal(found.codes, codes)
    assert found.num_samples == num_samples
    assert found.scales is None if scales is None else torch.equal(found.scales, scales)


@pytest.mark.parametrize("name", NAMES)
def test_the_package_makes_the_same_sound_of_our_files(name, tmp_path, monkeypatch):
    """Speech through our codec and our file, then heard by the package: what our own decoding gives."""
    encodec = import_encodec()
    from encodec.compress import MODELS, decompress

    build = getattr(encodec.EncodecModel, name.replace("encodec_", "encodec_model_"))
    reference = randomize(build(pretrained=False))
    for level, layer in enumerate(reference.quantizer.vq.layers):
        layer.codebook.normal_(std=0.5 * 0.9**level)
    torch.save(reference.state_dict(), tmp_path / "codec.th")
    codec = load_codec(tmp_path / "codec.th")
    rate = codec.spec.sample_rate
    waveform = torch.from_numpy(np.stack([speech_like(0.21, rate, seed=seed) for seed in range(codec.spec.channels)]))
    encoded = codec.encode(waveform, bandwidth_kbps=6.0)
    data = compress_ecdc(encoded, codec)
    monkeypatch.setitem(MODELS, name, lambda: reference)
    heard, sample_rate = decompress(data)
    assert sample_rate == rate
    torch.testing.assert_close(codec.decode(decompress_ecdc(data, codec))[0], heard, atol=1e-4, rtol=1e-4)
    assert heard.std() > 1e-3


def test_the_format_is_frozen():
    """Header and packed codes of three frames, byte for byte."""
    codes = np.array([[1, 2, 1023], [0, 512, 3]])
    start = b'ECDC\0\0\0\0\x37{"m": "encodec_24khz", "al": 700, "nc": 2, "lm": false}'
    assert written(EcdcFile("encodec_24khz", 700, (EcdcSegment(codes, None),))) == start + bytes.fromhex(
        "01002000 80ff0f00"
    )


def test_files_that_the_package_wrote_but_cannot_read_are_read(mono, monkeypatch):
    """21 whole frames: its reader reckons ceil(6720 / 24000 * 75) in floats, and waits for a 22nd."""
    data, frames, num_samples = mono.compress(6720 / 24000, 2, use_lm=False)
    assert num_samples == 6720
    with pytest.raises(EOFError):
        mono.decompress(data, monkeypatch)
    assert_same(read(data), frames)


@pytest.mark.timeout(60)
@WITH_LM
def test_every_truncation_is_noticed(pair, use_lm):
    """Cut at any byte, a file is refused; so is one with a byte too many."""
    lm = pair.lm if use_lm else None
    data = written(random_file(pair.name, 0.06 if pair.name == "encodec_24khz" else 0.02, 2), lm)
    assert 70 < len(data) < 110
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            read(data[:length], lm)
    with pytest.raises(BitstreamError, match="1 bytes more"):
        read(data + b"\0", lm)


@WITH_LM
def test_truncation_between_segments_is_noticed(pair_48khz, use_lm):
    """Cut at the end of the first segment, inside the second one's scale, and inside its codes."""
    lm = pair_48khz.lm if use_lm else None
    file = random_file("encodec_48khz", 0.995, 1)  # the second segment has one frame
    data = written(file, lm)
    for length in range(len(data) - 10, len(data)):
        with pytest.raises(BitstreamError):
            read(data[:length], lm)
    assert [segment.codes.shape for segment in read(data, lm).segments] == [(1, 150), (1, 1)]


def test_damage_to_predicted_codes_is_noticed(mono):
    """Of all single bits that flip behind the header, none goes unnoticed here."""
    data = written(random_file("encodec_24khz", 0.06, 2), mono.lm)
    for bit in range(8 * data.index(b"}") + 8, 8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            read(bytes(damaged), mono.lm)


def test_a_language_model_is_needed_where_one_was_used(mono):
    """Without it, or with another one: an error. Files that were packed need none."""
    file = random_file("encodec_24khz", 0.1, 2)
    with pytest.raises(BitstreamError, match="written with a language model"):
        read(written(file, mono.lm))
    other = load_encodec_lm_of(original_lm(num_codebooks=8, seed=1), mono)
    with pytest.raises(BitstreamError, match="another language model"):
        read(written(file, mono.lm), other)
    assert_same(read(written(file), other), [(torch.from_numpy(file.segments[0].codes)[None], None)])


def load_encodec_lm_of(reference, pair):
    torch.save(reference.state_dict(), pair.folder / "other.th")
    return load_encodec_lm(pair.folder / "other.th", context_frames=reference.transformer.past_context)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"codebook_size": 16}, "has 16 codes and 262 frames"),
        ({"context_frames": 525}, "has 1024 codes and 525 frames"),
        ({"num_codebooks": 1}, "codes of 2 levels; the language model has 1"),
    ],
    ids=["codes", "context", "levels"],
)
def test_language_models_of_other_codes_are_refused(sizes, reason, mono):
    """The original could not read the file: neither written nor tried."""
    lm = load_encodec_lm_of(original_lm(**sizes), mono)
    file = random_file("encodec_24khz", 0.1, 2)
    with pytest.raises(CheckpointError, match=reason):
        written(file, lm)
    with pytest.raises(CheckpointError, match=reason):
        read(written(file, mono.lm), lm)


def changed(file, **changes):
    """The file with its last segment changed."""
    return dataclasses.replace(file, segments=(*file.segments[:-1], dataclasses.replace(file.segments[-1], **changes)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: dataclasses.replace(file, model_name="speech_24khz"), "no files of 'speech_24khz'"),
        (lambda file: dataclasses.replace(file, num_samples=0), "at least 1 sample"),
        (lambda file: dataclasses.replace(file, num_samples=file.num_samples + 320), "2 segments of equal levels"),
        (lambda file: dataclasses.replace(file, segments=()), "2 segments of equal levels"),
        (lambda file: dataclasses.replace(file, segments=file.segments[:1]), "2 segments of equal levels"),
        (lambda file: changed(file, codes=file.segments[-1].codes[:1]), "2 segments of equal levels"),
        (lambda file: changed(file, codes=file.segments[-1].codes[:0]), "codes must be"),
        (lambda file: changed(file, codes=file.segments[-1].codes[0]), "integers"),
        (lambda file: changed(file, codes=file.segments[-1].codes.astype(float)), "not float64"),
        (lambda file: changed(file, codes=file.segments[-1].codes | np.uint16(1024)), "allowed is 0 to 1023"),
        (lambda file: changed(file, codes=np.tile(file.segments[-1].codes, (9, 1))), "1 to 16"),
        (lambda file: changed(file, scale=None), "cannot have the scale None"),
        (lambda file: changed(file, scale=0.0), "cannot have the scale 0.0"),
        (lambda file: changed(file, scale=float("nan")), "cannot have the scale nan"),
        (lambda file: changed(file, scale=1e39), "cannot have the scale 1e"),
        (lambda file: changed(file, scale=1e-60), "cannot have the scale 1e"),
    ],
)
def test_only_codes_of_such_files_are_written(change, reason):
    """Nothing is written that could not be read."""
    file = random_file("encodec_48khz", 1.05, 2)
    assert read(written(file)).num_samples == file.num_samples
    stream = io.BytesIO()
    with pytest.raises(CodesError, match=reason):
        write_ecdc(stream, change(file))
    assert stream.getvalue() == b""
    with pytest.raises(CodesError, match=r"cannot have the scale 0\.5"):
        written(changed(random_file("encodec_24khz", 0.1, 2), scale=0.5))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_none_are_refused(scale):
    """A damaged loudness would decode to noise, or to nothing."""
    data = bytearray(written(random_file("encodec_48khz", 0.1, 2)))
    start = data.index(b"}") + 1
    data[start : start + 4] = np.array(scale, ">f4").tobytes()
    with pytest.raises(BitstreamError, match="scale of a segment is"):
        read(bytes(data))


def test_only_encodecs_have_such_files():
    """The header can name no other codec, nor more than one waveform; and the two it can name are kept apart."""
    with torch.device("meta"):
        codec, other = Codec(ECDC_SPECS["encodec_24khz"]), Codec(ECDC_SPECS["encodec_48khz"])
    codes = torch.zeros(1, 2, 3, dtype=torch.int64)
    data = compress_ecdc(Encoded(codes, None, 700), codec)
    own = make_codec(tiny_spec())
    for call in (lambda: compress_ecdc(Encoded(codes, None, 24), own), lambda: decompress_ecdc(data, own)):
        with pytest.raises(CodesError, match="'tiny_seanet' is no EnCodec"):
            call()
    with pytest.raises(BitstreamError, match="codes of encodec_24khz, the codec is encodec_48khz"):
        decompress_ecdc(data, other)
    for encoded, reason in (
        (Encoded(codes.expand(2, -1, -1), None, 700), "one waveform"),
        (Encoded(codes, None, 1000), "1000 samples are 4 frames"),
        (Encoded(codes, torch.ones(1, 1), 700), "has no scales"),
        (Encoded(codes + 1024, None, 700), "allowed is 0 to 1023"),
    ):
        with pytest.raises(CodesError, match=reason):
            compress_ecdc(encoded, codec)
