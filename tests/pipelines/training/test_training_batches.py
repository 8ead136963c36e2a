"""Batches follow from seed, step and row alone: not from workers, ranks or interruptions."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipelines.training.data_settings import DataSettings, Sampling
from pipelines.training.training_audio import open_training_audio
from pipelines.training.training_batches import TrainingBatches
from tests.conftest import speech_like, tiny_spec
from tokenizer import DatasetError

SETTINGS = DataSettings(reverb_probability=0.5)
SAMPLES = 2400


@pytest.fixture
def audio(speech_folder, tmp_path):
    """Ten clips of 0.2 to 0.65 s."""
    return open_training_audio([speech_folder], tiny_spec(), SETTINGS, cache_dir=tmp_path / "cache")


def batches_of(audio, settings=SETTINGS, **changes):
    arguments = {"batch_size": 8, "num_samples": SAMPLES, "seed": 3} | changes
    return TrainingBatches(audio, settings, **arguments)


def take(batches, count, step=0):
    with batches:
        return list(itertools.islice(batches.from_step(step), count))


def is_running(pid):
    """Whether a process is there and no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_batches_are_a_function_of_seed_and_step(audio):
    """The same again; from any step on what an undisturbed run has there; other seeds and steps differ."""
    first = take(batches_of(audio), 4)
    assert first[0].shape == (8, 1, SAMPLES)
    assert first[0].dtype == torch.float32
    for again, step in ((batches_of(audio), 0), (batches_of(audio), 2)):
        assert all(torch.equal(a, b) for a, b in zip(take(again, 4 - step, step), first[step:], strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], take(batches_of(audio, seed=4), 1)[0])


def test_ranks_see_their_part_of_the_whole_batch(audio):
    """Four processes of two rows each see what one process of eight sees."""
    whole = take(batches_of(audio), 2)
    parts = [take(batches_of(audio, rank=rank, world_size=4), 2) for rank in range(4)]
    for step in range(2):
        assert torch.equal(torch.cat([part[step] for part in parts]), whole[step])


def test_workers_change_no_bit_and_leave_nothing_behind(audio):
    """Two processes read ahead, in order; the global random numbers of the training step stay its own."""
    expected = take(batches_of(audio), 5, step=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = batches_of(audio, num_workers=2)
    with batches:
        sequence = batches.from_step(1)
        found = list(itertools.islice(sequence, 5))
        assert len(multiprocessing.active_children()) == 2
        assert torch.equal(torch.get_rng_state(), before)
        assert batches.wait_seconds > 0
    assert multiprocessing.active_children() == []
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_dead_worker_is_an_error(audio):
    """And not a hang; its siblings end too."""
    with batches_of(audio, num_workers=2) as batches:
        sequence = batches.from_step(0)
        next(sequence)
        victim = multiprocessing.active_children()[0]
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="a process that reads training audio died"):
            list(itertools.islice(sequence, 10))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_workers_end_with_a_killed_parent():
    """Nothing stays behind that would wait for work for ever."""
    program = (
        "import os, time; from pipelines.reader_pool import reader_pool\n"
        "if __name__ == '__main__':\n"
        "    print(reader_pool(1).submit(os.getpid).result(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)  # it lives
        parent.kill()
    deadline = time.monotonic() + 10
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def test_rows_end_in_silence_where_the_clip_does(audio):
    """A crop never runs on into another clip."""
    (batch,) = take(batches_of(audio, DataSettings(sampling=Sampling(one=1.0)), num_samples=24000, batch_size=64), 1)
    assert (batch[:, :, 15601:] == 0).all()
    assert (batch[:, :, :4000].abs().amax(dim=-1) > 0).all()


def test_nothing_clips_however_many_sources(audio):
    """Sources are added up at up to 40 dB more than they have, and the guard comes last."""
    settings = DataSettings(sampling=Sampling(three_without_music=1.0), gain_db=(30.0, 40.0), reverb_probability=0.5)
    (batch,) = take(batches_of(audio, settings, batch_size=32), 1)
    np.testing.assert_allclose(batch.abs().amax(dim=(1, 2)), 0.99, rtol=1e-5)


def test_sources_have_their_gains(tmp_path):
    """A clip of constant level comes out at -10 to +6 dB of it; a mix of two is a sum of two such."""
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "level.wav", np.full(24000, 0.2), 24000, subtype="FLOAT")
    audio = open_training_audio([tmp_path / "clips"], tiny_spec(), SETTINGS, cache_dir=tmp_path / "cache")
    for num_sources, sampling in ((1, Sampling(one=1.0)), (2, Sampling(two=1.0))):
        (batch,) = take(batches_of(audio, DataSettings(sampling=sampling), batch_size=200), 1)
        levels = 20 * np.log10(batch[:, 0, 0].numpy() / 0.2 / num_sources)
        assert -10.01 < levels.min() < -7.0
        assert 3.0 < levels.max() < 6.01
        assert (batch == batch[:, :, :1]).all()


def test_clips_that_turn_unreadable_are_drawn_again(speech_folder, tmp_path):
    """Read in place, a file may be gone when its turn comes: it is counted, and another one fills the row."""
    settings = DataSettings(store_hours=0.0)
    audio = open_training_audio([speech_folder], tiny_spec(), settings, cache_dir=tmp_path / "cache")
    paths = sorted(speech_folder.rglob("*.wav"))
    for path in paths[:3]:
        path.unlink()
    batches = batches_of(audio, settings, batch_size=32)
    (batch,) = take(batches, 1)
    assert batches.unreadable == {0, 1, 2}
    assert (batch.abs().amax(dim=(1, 2)) > 0).all()
    for path in paths[3:]:
        path.unlink()
    with pytest.raises(DatasetError, match=r"could not be read; the last: .*\.wav"):
        take(batches_of(audio, settings), 1)


def test_reverberation_spares_single_music(tmp_path):
    """As in EnCodec: music has its room already."""
    rows = []
    for kind in ("music", "speech"):
        soundfile.write(tmp_path / f"{kind}.wav", speech_like(0.1), 24000)
        rows.append(f'{{"path": "{kind}.wav", "kind": "{kind}"}}\n')
    (tmp_path / "clips.jsonl").write_text("".join(rows))
    audio = open_training_audio([tmp_path / "clips.jsonl"], tiny_spec(), SETTINGS, cache_dir=tmp_path / "cache")
    assert audio.seconds_by_kind.keys() == {"music", "speech"}
    for name, is_changed in (("one_music", False), ("one_other", True)):
        settings = DataSettings(sampling=Sampling(**{name: 1.0}), gain_db=(0.0, 0.0), reverb_probability=1.0)
        (batch,) = take(batches_of(audio, settings), 1)
        assert torch.allclose(batch[0, 0], torch.from_numpy(speech_like(0.1)), atol=1e-4) != is_changed


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"num_samples": 0},
        {"seed": -1},
        {"num_workers": -1},
        {"batch_size": 8, "world_size": 3},
        {"rank": 2, "world_size": 2},
        {"world_size": 0},
    ],
    ids=str,
)
def test_wrong_numbers_are_refused(audio, changes):
    """Before anything is read."""
    with pytest.raises(ValueError, match=r"positive|equal part"):
        batches_of(audio, **changes)
