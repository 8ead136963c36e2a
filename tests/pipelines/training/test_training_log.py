"""What a training run writes down, and how people see it."""

import io
import time

import numpy as np
from rich.console import Console
from tensorboardX.proto import event_pb2

from pipelines.training.training_log import Preview, TrainingLog, read_log
from pipelines.training.training_view import row_line, row_table, training_view

ROW = {
    "step": 50,
    "steps": 100,
    "mel": 0.25,
    "discriminator": 1.9,
    "gradient_norm": 3.0,
    "rate_factor": 1.0,
    "steps_per_s": 2.0,
    "per_s": 48.0,
    "unit": "audio s",
    "seen": 1200.0,
    "wait_share": 0.031,
    "minutes": 1.0,
    "shares": {"mel": 0.75},
    "used": [0.5, 1.0],
    "perplexity": [300.0, 800.0],
}


def events(folder):
    """Tags of everything in the TensorBoard files of a run."""
    tags = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            tags += [(value.tag, value.WhichOneof("value")) for value in event.summary.value]
            data = data[16 + length :]
    return tags


def test_rows_come_back_as_they_were_written(tmp_path):
    """And a line that a killed run left unfinished is skipped."""
    log = TrainingLog(tmp_path, 0)
    log.write(ROW)
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 75, "mel"')
    assert read_log(tmp_path) == [ROW]


def test_a_resumed_run_drops_what_it_makes_again(tmp_path):
    """Rows after its step are gone, those before it stay."""
    log = TrainingLog(tmp_path, 0)
    for step in (25, 50, 75):
        log.write(ROW | {"step": step})
    log.close()
    TrainingLog(tmp_path, 50).close()
    assert [row["step"] for row in read_log(tmp_path)] == [25, 50]


def test_tensorboard_gets_scalars_sound_and_pictures(tmp_path):
    """Lists by level, mappings by name."""
    log = TrainingLog(tmp_path, 0)
    log.write(ROW)
    sound, picture = np.zeros(100, np.float32), np.zeros((8, 8, 3), np.uint8)
    log.show(Preview({"original/0": sound}, 24000, {"original/0": picture}), 50)
    log.close()
    tags = events(tmp_path)
    assert {("mel", "simple_value"), ("shares/mel", "simple_value"), ("used/01", "simple_value")} <= set(tags)
    assert {("original/0", "audio"), ("original/0", "image")} <= set(tags)


def test_a_line_says_what_matters():
    """Step, losses, speed, waiting and time left; no bookkeeping."""
    line = row_line(ROW)
    assert line.startswith("step 50/100  mel 0.25  discriminator 1.9  ")
    assert line.endswith("2.00 steps/s, 48 audio s/s, 3% waiting for data, 0:00:25 left")
    assert "rate_factor" not in line


def test_the_table_shows_shares_of_the_gradient_and_use_of_levels():
    """One row a loss, one for each fact by level."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(row_table(ROW, "speech_24khz"))
    text = console.export_text()
    for words in ("speech_24khz: step 50 of 100", "75% of the gradient", "0.50 1.00", "300 800"):
        assert words in text


def test_the_table_shows_whatever_there_is_by_level():
    """Bits of a language model as well as the use of codebooks; two digits where they matter."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(row_table(ROW | {"bits_held_out": [5.251, 7.5], "bits_training": {"00": 5.5}}, "lm"))
    text = console.export_text()
    assert "bits_held_out by level" in text
    assert "5.25 7.50" in text
    assert "bits_training" not in text


def test_the_view_follows_the_log(tmp_path, capfd):
    """Rows of an earlier attempt are not news; each new one is a line on stderr."""
    first = TrainingLog(tmp_path, 0)
    first.write(ROW | {"step": 25})
    first.close()
    with training_view(tmp_path, "tiny"):
        time.sleep(0.1)
        log = TrainingLog(tmp_path, 25)
        log.write(ROW)
        log.close()
    shown = capfd.readouterr().err
    assert "step 50/100" in shown
    assert "step 25/100" not in shown
