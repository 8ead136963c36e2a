"""Codecs of other packages do the same work as ours, and a missing package is said."""

import pytest
import torch

from pipelines.benchmarking import bench_peers, peer_codecs
from pipelines.benchmarking.bench_contest import Turns
from pipelines.benchmarking.bench_peers import CodecCell, bench_cell, codec_cells
from pipelines.benchmarking.peer_codecs import (
    encodec_model,
    encodec_peer,
    import_peer,
    transformers_encodec,
    transformers_mimi,
    with_weights_of,
)
from pipelines.bundled_speech import bundled_speech
from tokenizer.presets import PRESETS

QUICK = Turns(rounds=1, patience_s=0.0)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("name", ["encodec_24khz", "encodec_48khz"])
def test_every_encodec_codes_as_many_frames_and_levels(name):
    """At 3 kbps, a second of speech and back: the `encodec` package, `transformers`, and ours with the same codes."""
    spec = PRESETS[name]
    waveform = bundled_speech(spec, 1.0, 1)
    model = encodec_model(name)
    levels = spec.num_codebooks_at(3.0)
    peers = [encodec_peer(model, 3.0), transformers_encodec(name, 3.0)]
    theirs, others = (peer.encode(waveform) for peer in peers)
    codes = torch.cat([codes for codes, _ in theirs], dim=-1)
    assert codes.shape[1] == levels
    other_codes = others.audio_codes
    assert other_codes.shape[2] == levels
    assert sum(chunk.shape[-1] for chunk in other_codes) >= codes.shape[-1]
    ours = with_weights_of(model, name).encode(waveform, bandwidth_kbps=3.0).codes
    assert (ours != codes).float().mean() < 1e-3
    for peer, encoded in zip(peers, (theirs, others), strict=True):
        decoded = peer.decode(encoded)
        samples = decoded if isinstance(decoded, torch.Tensor) else decoded[0]
        assert samples.shape[1] == spec.channels
        assert abs(samples.shape[-1] - waveform.shape[-1]) < spec.hop_length


def test_mimi_codes_at_its_own_rate():
    """12.5 frames a second of eight levels."""
    peer = transformers_mimi()
    encoded = peer.encode(bundled_speech(PRESETS["encodec_24khz"], 0.8, 2))
    assert encoded.audio_codes.shape == (2, 8, 10)
    assert peer.decode(encoded)[0].shape[-1] == 19200


def test_a_package_that_is_not_there_says_how_to_get_it():
    with pytest.raises(ImportError, match="pip install no-such-codec"):
        import_peer("no_such_codec_module", "no-such-codec")


def test_random_weights_leave_the_callers_random_numbers_alone():
    before = torch.random.get_rng_state()
    transformers_encodec("encodec_24khz", 3.0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_cell_gives_a_row_for_each_direction(tiny_codec_dir):
    cell = CodecCell(str(tiny_codec_dir), 48.0, 2, 1)
    rows = bench_cell(cell, seconds=0.1, turns=QUICK, missing=pytest.fail)
    assert [row.work for row in rows] == ["encode", "decode"]
    for row in rows:
        assert row.key == "codec/tiny/48kbps/batch2/threads1"
        assert [result.contender for result in row.results] == ["quantone plain", "quantone exact", "quantone fast"]
        assert row.results[0].ratio == 1.0


def test_without_transformers_the_others_are_measured(monkeypatch):
    def missing_package(module, package):
        if package == "transformers":
            raise ImportError("transformers is not installed")
        return import_peer(module, package)

    monkeypatch.setattr(peer_codecs, "import_peer", missing_package)
    said = []
    cell = CodecCell("encodec_24khz", 1.5, 1, 1)
    rows = bench_cell(cell, seconds=0.1, turns=QUICK, missing=said.append)
    assert said == ["transformers is not installed"]
    names = ["quantone exact", "quantone fast", "encodec"]
    assert [result.contender for result in rows[0].results] == names


def test_every_batch_thread_and_bandwidth_has_a_cell():
    cells = {(cell.codec, cell.kbps, cell.batch_size, cell.threads) for cell in codec_cells()}
    for codec in ("encodec_24khz", "encodec_48khz"):
        assert {(codec, 12.0, batch, threads) for batch in (1, 8) for threads in (1, 2)} <= cells
        assert {kbps for name, kbps, *_ in cells if name == codec} == set(PRESETS[codec].bandwidths_kbps)
    assert len({cell.key for cell in codec_cells()}) == len(bench_peers.codec_cells())
