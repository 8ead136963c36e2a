"""Datasets whose codes a language model compressed: one .qtn stream a row."""

import dataclasses
import io
import shutil

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lm_head import LMCard, LMConfig, TokenLM, load_coder, open_qtn, save_lm
from lm_head.lm_training import calibrated_steps
from pipelines import open_dataset, tokenize_corpus
from pipelines.cli import main
from pipelines.corpus.bundle_reader import ReadAudio
from pipelines.corpus.carried_lm import CarriedLM
from pipelines.corpus.encoder import Encoder, EncodeSettings
from pipelines.corpus.unit_commit import Target, UnitInputs, commit_unit
from pipelines.datasets.dataset_info import DatasetInfo, read_dataset_info, write_dataset_info
from pipelines.datasets.parts import ErrorRow, PartFormat, encode_part, measure_part
from pipelines.datasets.stored_codes import level_bytes, read_utterances
from pipelines.decoding.decode_job import decode_dataset
from pipelines.reporting.report import write_report
from tests.conftest import speech_like
from tests.pipelines.token_rows import part_format
from tokenizer import RESAMPLER, CheckpointError, DatasetError, load_codec, mix_channels

SIZES = {"codebook_size": 16, "dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 32, "context_frames": 10}


def save_tiny_lm(directory, codec, *, seed=0, num_codebooks=4, card=None):
    """A random model in integers for a codec of 16 codes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = TokenLM(LMConfig(num_codebooks=num_codebooks, **SIZES)).eval()
        steps = calibrated_steps(lm, torch.randint(0, 16, (4, num_codebooks, 50)))
    save_lm(lm, directory, LMCard("tiny", codec.card() if card is None else card), steps)
    return str(directory)


@pytest.fixture(scope="module")
def lm_dir(tiny_codec_dir, tmp_path_factory):
    return save_tiny_lm(tmp_path_factory.mktemp("lm"), load_codec(tiny_codec_dir))


def write_compressed(root, codec_dir, lm, num_codebooks=4):
    """Three files in one part, and one that failed, as the workers of a job write them; returns their codes by id."""
    codec, coder = load_codec(codec_dir).with_precision("exact"), load_coder(lm)
    card = {**codec.card(), "source": str(codec_dir)}
    info = DatasetInfo(
        codec=card,
        bandwidth_kbps=codec.spec.level_kbps * num_codebooks,
        num_codebooks=num_codebooks,
        resampler=RESAMPLER,
        plan_sha256="",
        lm={"name": "tiny", "identity": coder.identity, "source": lm},
    )
    write_dataset_info(str(root), info)
    waveforms = {f"{number}.wav": speech_waveform(number, codec.spec.channels) for number in range(3)}
    read = [read_audio_of(name, waveform) for name, waveform in waveforms.items()]
    encoder = Encoder(codec, EncodeSettings(num_codebooks, 120.0), lm=CarriedLM.read(lm))
    failed = ErrorRow("bad.wav", "/nowhere/bad.wav", "AudioError", "no audio")
    _, bundle = encoder.encode_bundle(None, read, [failed])
    form = PartFormat(spec=codec.spec, num_codebooks=num_codebooks, card=card, compressed=True)
    names = ["2.wav", "bad.wav", "0.wav", "1.wav"]
    unit = UnitInputs(0, names, [f"/nowhere/{name}" for name in names], pa.table({}))
    result = commit_unit(unit, Target(str(root), form, lm="some reference"), bundle)
    assert (result.num_ok, result.errors) == (3, {"AudioError": 1})
    encoded = {name: codec.encode(waveform) for name, waveform in waveforms.items()}
    return {name: each.codes[0, :num_codebooks].numpy() for name, each in encoded.items()}


def read_audio_of(name, waveform):
    return ReadAudio(name, name, f"/nowhere/{name}", 0, 24000, 1, waveform.numpy())


def speech_waveform(seed, channels=1):
    return mix_channels(torch.from_numpy(speech_like(0.1 + 0.05 * seed, seed=seed))[None], channels)


@pytest.fixture
def compressed(tiny_codec_dir, lm_dir, tmp_path):
    """A dataset, and its codes by id."""
    return tmp_path / "tokens", write_compressed(tmp_path / "tokens", tiny_codec_dir, lm_dir)


def test_every_row_is_a_stream_of_its_own(compressed, tiny_codec_dir, lm_dir):
    """In one column in place of those of the levels; what the file says of codec and model is in it."""
    dataset, codes = compressed
    frame = open_dataset(dataset).collect()
    assert frame["id"].to_list() == ["2.wav", "0.wav", "1.wav"]
    assert [name for name in frame.columns if name.startswith("codes")] == ["codes_qtn"]
    assert frame["num_frames"].to_list() == [codes[name].shape[1] for name in frame["id"]]
    for row in frame.iter_rows(named=True):
        stream = open_qtn(row["codes_qtn"], load_coder(lm_dir))
        assert stream.header.codec == load_codec(tiny_codec_dir).sha256[:12]
        assert stream.header.num_samples == row["num_samples"]
        np.testing.assert_array_equal(stream.block(0), codes[row["id"]])


@pytest.mark.parametrize("levels", [1, 4])
def test_readers_get_the_codes_that_were_written(compressed, levels):
    """As many levels as they ask for, and only the rows."""
    dataset, codes = compressed
    found = {row.id: row for row in read_utterances(dataset, levels)}
    assert found.keys() == codes.keys()
    for name, row in found.items():
        np.testing.assert_array_equal(row.codes, codes[name][:levels])
        assert (row.codes.dtype, row.scales) == (np.uint16, None)
        assert -(-row.num_samples // 8) == row.codes.shape[1]
    assert [row.id for row in read_utterances(dataset, levels, ["1.wav"])] == ["1.wav"]


def test_scales_come_back_bit_by_bit(segmented_codec_dir, tmp_path):
    """From the streams, which hold them."""
    codec = load_codec(segmented_codec_dir)
    lm = save_tiny_lm(tmp_path / "lm", codec)
    codes = write_compressed(tmp_path / "tokens", segmented_codec_dir, lm)
    stored = dict(open_dataset(tmp_path / "tokens").select("id", "scales").collect().rows())
    for row in read_utterances(tmp_path / "tokens", 4):
        np.testing.assert_array_equal(row.codes, codes[row.id])
        assert row.scales.tolist() == stored[row.id]


def test_another_model_does_not_read_it(compressed, tiny_codec_dir, lm_dir, tmp_path):
    """The message names both; a model that is gone is named too."""
    dataset, _ = compressed
    info = read_dataset_info(dataset)
    other = save_tiny_lm(tmp_path / "other", load_codec(tiny_codec_dir), seed=1)
    write_dataset_info(str(dataset), dataclasses.replace(info, lm={**info.lm, "source": other}))
    with pytest.raises(DatasetError, match=f"compressed by 'tiny', {info.lm['identity'][:8]}"):
        next(read_utterances(dataset, 4))
    write_dataset_info(str(dataset), dataclasses.replace(info, lm={**info.lm, "source": "/gone"}))
    with pytest.raises(CheckpointError, match="/gone"):
        next(read_utterances(dataset, 4))


def test_streams_that_are_damaged_name_their_part(compressed, tiny_codec_dir):
    """A flipped bit is found by the checksums of pages, a stream that was already wrong when written by its own."""
    dataset, _ = compressed
    part = dataset / "parts" / "part-00000.parquet"
    table = pq.read_table(part)
    shutil.rmtree(dataset / "records")  # rewritten on purpose
    for wrong in (b"QTN\1 nonsense", None):
        streams = [*table["codes_qtn"].to_pylist()[:-1], wrong]
        column = table.column_names.index("codes_qtn")
        replaced = table.set_column(column, table.schema.field(column), [streams])
        pq.write_table(replaced, part)
        with pytest.raises(DatasetError, match=r"part-00000.*codes_qtn"):
            list(read_utterances(dataset, 4))


def test_what_needs_columns_of_levels_says_that_there_are_none(compressed, tmp_path, capsys):
    """Reports, and queries of codes."""
    dataset, _ = compressed
    with pytest.raises(DatasetError, match="codes_qtn only"):
        level_bytes(dataset)
    with pytest.raises(DatasetError, match="is compressed"):
        write_report(dataset, tmp_path / "report.html")
    assert main(["report", str(dataset), "-o", str(tmp_path / "report.html")]) == 1
    assert "codes_qtn only" in capsys.readouterr().err


def test_a_compressed_part_is_measured_by_its_streams(tiny_codec_dir, lm_dir):
    """All codes of the rows, and bytes of the column that holds them; a row without a stream is refused."""
    codec = load_codec(tiny_codec_dir)
    read = [read_audio_of(f"{n}.wav", speech_waveform(n)) for n in range(4)]
    rows = Encoder(codec, EncodeSettings(4, 120.0), lm=CarriedLM.read(lm_dir)).encode_bundle(None, read)[1].rows
    content = encode_part(rows, part_format(codec, compressed=True))
    size = measure_part(content, rows)
    assert size.num_codes == 4 * sum(300 + 150 * n for n in range(4))
    streams = sum(len(row.qtn) for row in rows)
    assert 0.5 * streams < size.code_bytes < streams + 200
    assert pl.read_parquet(io.BytesIO(content))["codes_qtn"].to_list() == [row.qtn for row in rows]
    with pytest.raises(ValueError, match="has no stream"):
        encode_part([dataclasses.replace(rows[0], qtn=None)], part_format(codec, compressed=True))


def test_only_the_model_that_began_a_dataset_goes_on_with_it(compressed):
    """Another one is named as a difference; none is one too."""
    info = read_dataset_info(compressed[0])
    assert info.describe_difference(info) is None
    other = dataclasses.replace(info, lm={**info.lm, "identity": "f" * 64})
    assert "compressed by: tiny (" in info.describe_difference(other)
    assert "compressed by: nothing there, tiny" in dataclasses.replace(info, lm=None).describe_difference(info)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_codebooks": 2}, "has 2 levels, the codes 4"),
        ({"card": {"name": "another", "sha256": "0" * 64}}, "for codes of 'another'"),
    ],
    ids=["levels", "codec"],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    settings, reason, speech_folder, tiny_codec_dir, tmp_path
):
    """With the reason."""
    lm = save_tiny_lm(tmp_path / "lm", load_codec(tiny_codec_dir), **settings)
    with pytest.raises(ValueError, match=reason):
        tokenize_corpus(speech_folder, tmp_path / "tokens", codec=tiny_codec_dir, compress_with=lm, progress=False)
    assert not (tmp_path / "tokens").exists()


def test_a_carried_model_is_the_one_that_was_read(lm_dir, tmp_path):
    """Wherever it arrives, although the files are gone; one that was never there is refused."""
    shutil.copytree(lm_dir, tmp_path / "copy")
    carried = CarriedLM.read(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")
    assert carried.coder().identity == load_coder(lm_dir).identity
    with pytest.raises(CheckpointError, match="no language model 'nothing'"):
        CarriedLM.read("nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        CarriedLM.read(tmp_path)


def test_a_job_compresses_and_resumes(ray_session, speech_folder, tiny_codec_dir, lm_dir, tmp_path):
    """The codes of a plain job, in streams; the same command goes on, one without the model does not."""
    settings = {"codec": tiny_codec_dir, "num_workers": 1, "unit_seconds": 1.0, "progress": False}
    plain, dataset = tmp_path / "plain", tmp_path / "tokens"
    tokenize_corpus(speech_folder, plain, **settings)
    summary = tokenize_corpus(speech_folder, dataset, compress_with=lm_dir, **settings)
    assert (summary.num_ok, summary.num_errors) == (10, 0)
    expected = {row.id: row.codes for row in read_utterances(plain, 4)}
    assert summary.num_codes == sum(codes.size for codes in expected.values())
    (dataset / "parts" / "part-00001.parquet").unlink()
    assert tokenize_corpus(speech_folder, dataset, compress_with=lm_dir, **settings).num_ok > 0
    found = {row.id: row.codes for row in read_utterances(dataset, 4)}
    assert found.keys() == expected.keys()
    for name, codes in expected.items():
        np.testing.assert_array_equal(found[name], codes)
    with pytest.raises(DatasetError, match=r"compressed by: tiny \(.*\) there, nothing asked for"):
        tokenize_corpus(speech_folder, dataset, **settings)
    decoded = decode_dataset(dataset, tmp_path / "audio", num_workers=1, progress=False)
    assert (decoded.num_files, decoded.errors) == (10, {})
