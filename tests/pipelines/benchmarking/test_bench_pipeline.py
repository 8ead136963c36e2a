"""The pipeline benchmark: the job and the bare codec do the same work, and all time is accounted for."""

import itertools
import json

import numpy as np
import pytest
import soundfile
import torch

from pipelines import open_dataset, tokenize_corpus
from pipelines.benchmarking import bench_pipeline as room
from pipelines.benchmarking.bare_encoders import BareBatch, BareEncoders
from pipelines.benchmarking.bench_pipeline import bench_pipeline
from pipelines.cli import main
from pipelines.corpus.corpus_job import open_job
from pipelines.corpus.job_settings import JobSettings
from tests.conftest import speech_like
from tokenizer import load_codec

SETTINGS = JobSettings(num_workers=1, batch_seconds=1.0, unit_seconds=4.0)


@pytest.fixture
def clips(tmp_path):
    """Nine clips of two rates, and one file that is no audio."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for index in range(9):
        rate = 16000 if index % 2 else 24000
        soundfile.write(folder / f"{index}.wav", speech_like(0.3 + 0.1 * index, rate, seed=index), rate)
    (folder / "text.wav").write_text("this is not audio\n" * 50)
    return folder


def test_the_bare_codec_gets_the_very_batches_of_the_job(ray_session, clips, tiny_codec_dir, tmp_path):
    """Laid down one after another, they give the codes that the job committed: the same waveforms, each once."""
    job = open_job(clips, tmp_path / "unused", str(tiny_codec_dir), SETTINGS)
    batches = room._write_batches(job, tmp_path / "waveforms")
    assert len(batches) > 3
    samples, codec, codes = np.fromfile(tmp_path / "waveforms", np.float32), load_codec(tiny_codec_dir), []
    for batch in batches:
        ends = batch.begin + np.cumsum([0, *batch.lengths])
        waveforms = [torch.from_numpy(samples[a:b])[None] for a, b in itertools.pairwise(ends)]
        codes += [encoded.codes[0, 0].tolist() for encoded in codec.encode_batch(waveforms)]
    assert batches[-1].begin + sum(batches[-1].lengths) == len(samples)
    tokenize_corpus(clips, tmp_path / "tokens", codec=tiny_codec_dir, progress=False, num_workers=1)
    committed = open_dataset(tmp_path / "tokens").collect()["codes_00"].to_list()
    assert sorted(codes) == sorted(committed)


def test_the_bare_codec_does_every_batch_in_every_round(clips, tiny_codec_dir, tmp_path):
    """In as many processes as asked for; one that fails there is no fast round, but an error here."""
    job = open_job(clips, tmp_path / "unused", str(tiny_codec_dir), SETTINGS)
    batches = room._write_batches(job, tmp_path / "waveforms")
    beyond = BareBatch(batches[-1].begin, [10**9])
    with BareEncoders(
        str(tiny_codec_dir), 48.0, tmp_path / "waveforms", [*batches, beyond], precision="exact", count=2
    ) as bare:
        for _ in range(2):
            with pytest.raises(ValueError, match="reshape"):
                bare.run()


def test_all_time_is_accounted_for(ray_session, clips, tiny_codec_dir):
    """Speeds and their ratio over the rounds; the shares of the encoders' time add up to all of it."""
    measured = bench_pipeline(str(clips), codec=str(tiny_codec_dir), settings=SETTINGS, rounds=1)
    assert (measured.num_inputs, measured.num_encoders, len(measured.runs)) == (10, 1, 1)
    assert measured.audio_seconds == pytest.approx(sum(0.3 + 0.1 * index for index in range(9)), abs=0.01)
    for run in measured.runs:
        assert run.audio_seconds == pytest.approx(measured.audio_seconds)
        assert sum(run.encoders.values()) == pytest.approx(1.0)
        assert min(run.encoders.values()) > -0.01
        stages = run.stages
        assert min(stages.reading, stages.resampling, stages.encoding, stages.measuring, stages.writing) > 0
        assert stages.compressing < 0.1 * stages.encoding
        assert measured.job_speed == pytest.approx(run.audio_seconds / run.running_s)
    assert measured.ratio == pytest.approx(measured.job_speed / measured.bare_speed)


def test_the_command_measures_the_bundled_speech(ray_session, tiny_codec_dir, tmp_path, capsys):
    """Without a source; the figures go to a file as well."""
    figures = tmp_path / "figures.json"
    arguments = ["--codec", str(tiny_codec_dir), "-j", "1", "--minutes", "0.1", "--rounds", "1"]
    assert main(["bench", "pipeline", *arguments, "--json", str(figures)]) == 0
    shown = capsys.readouterr().out
    for word in ("the bare codec", "ratio", "resampling", "waiting for readers"):
        assert word in shown
    written = json.loads(figures.read_text())
    assert written["audio_seconds"] >= 6.0
    assert written["runs"][0]["stages"]["resampling"] > 0


def test_gpus_are_refused(clips):
    """There the bare codec would be something else."""
    with pytest.raises(ValueError, match="CPUs"):
        bench_pipeline(str(clips), settings=JobSettings(gpus_per_worker=1.0))
