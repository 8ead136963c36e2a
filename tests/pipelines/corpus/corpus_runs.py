"""Corpus jobs in processes of their own, to be disturbed, and what their datasets must hold all the same."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import soundfile

from pipelines import open_dataset, storage, tokenize_corpus
from pipelines.datasets.dataset import list_parts, open_errors
from pipelines.datasets.verify import verify_dataset
from tests.conftest import speech_like

REPOSITORY = Path(__file__).parents[3]
NUM_GOOD, BAD = 27, {"07-text.wav": b"this is not audio\n" * 2000, "16-empty.wav": b"", "25-riff.wav": b"RIFF" * 9000}
UNIT_SECONDS = 1.0  # two or three clips a unit, so that there is much to be interrupted
_FILE_OF_A_UNIT = re.compile(r"(parts|errors)/part-\d{5}\.parquet|records/part-\d{5}\.[0-9a-f]{16}\.json")
_FILE_OF_ALL = ("dataset.json", "plan.parquet")
_MARK = "QUANTONE_TEST_DRIVER"  # in the environment of a driver and of all that it starts


def make_corpus(folder):
    """Clips of about half a second in many units, and three files that are no audio."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(NUM_GOOD):
        soundfile.write(folder / f"{index:02d}.wav", speech_like(0.4 + 0.01 * index, 16000, seed=index), 16000)
    for name, content in BAD.items():
        (folder / name).write_bytes(content)
    return folder


def tokenize(source, dataset, codec, **settings):
    """The job in this process."""
    chosen = {"num_workers": 1, "unit_seconds": UNIT_SECONDS, **settings}
    return tokenize_corpus(source, dataset, codec=codec, progress=False, **chosen)


@dataclass(frozen=True)
class Contents:
    """All that a dataset says, whatever it is called and whenever it was made."""

    rows: pl.DataFrame
    errors: pl.DataFrame
    parts: tuple[str, ...]


def contents(dataset):
    """What is in a dataset, every byte checked."""
    rows, errors = open_dataset(dataset).sort("id").collect(), open_errors(dataset).sort("id").collect()
    return Contents(rows, errors, tuple(list_parts(dataset)))


def assert_same_dataset(dataset, expected):
    """Row by row and error by error as undisturbed; every input once; nothing that does not belong there."""
    found = contents(dataset)
    assert found.rows["id"].to_list() == expected.rows["id"].to_list()
    assert found.errors["id"].to_list() == expected.errors["id"].to_list()
    assert found.rows.equals(expected.rows)
    assert found.errors.equals(expected.errors)
    assert found.parts == expected.parts
    assert leftovers(dataset) == []
    verified = verify_dataset(dataset, num_threads=1)
    assert verified.problems == ()
    assert verified.num_rows + verified.num_errors == found.rows.height + found.errors.height


def leftovers(dataset):
    """Files that belong to no unit, hidden ones too, and records that describe no part."""
    names = file_names(dataset)
    parts = {name.removeprefix("parts/").removesuffix(".parquet") for name in names if name.startswith("parts/")}
    foreign = [name for name in names if name not in _FILE_OF_ALL and not _FILE_OF_A_UNIT.fullmatch(name)]
    homeless = [name for name in names if name.startswith(("records/", "errors/")) and unit_of(name) not in parts]
    return foreign + homeless


def temporaries(dataset):
    """Files that no reader may see: what a writer that died left."""
    return [name for name in file_names(dataset) if name.rpartition("/")[2].startswith(".")]


def unit_of(name):
    """The unit whose file this is."""
    return name.rpartition("/")[2].split(".")[0]


def file_names(dataset):
    """Every file below a dataset, hidden ones too."""
    root = storage.absolute(dataset)
    if storage.is_s3(root):
        import s3fs

        keys = s3fs.S3FileSystem(use_listings_cache=False).find(root)
        return sorted(f"s3://{key}".removeprefix(f"{root}/") for key in keys)
    return sorted(path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file())


class Program:
    """A Python module that runs in a process of its own, and all that it starts.

    Args:
        module: with a main program.
        argument: its only one, as JSON.
        environment: variables that it gets.
    """

    def __init__(self, module, argument, environment):
        self._mark = uuid.uuid4().hex
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment, _MARK: self._mark}
        variables.pop("RAY_ADDRESS", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(argument)],
            env=variables,
            cwd=REPOSITORY,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def alive(self):
        """Whether the driver itself runs."""
        return self._process.poll() is None

    @property
    def pid(self):
        """Of the driver itself."""
        return self._process.pid

    def kill(self):
        """SIGKILL for the driver; its workers are left to themselves."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def end(self, timeout_s=120.0):
        """Wait for its end: exit code, and the last lines that it wrote on stdout and stderr."""
        out, err = self._process.communicate(timeout=timeout_s)
        printed, said = ((text.splitlines() or [""])[-1] for text in (out, err))
        return self._process.returncode, printed, said

    def clean_up(self):
        """End it and whatever it started that is still there."""
        self.kill()
        for pid in self.descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for stream in (self._process.stdout, self._process.stderr):
            stream.close()

    def descendants(self):
        """Processes that have this driver's mark in their environment: Ray's children leave every group and session."""
        return [pid for pid in all_pids() if pid != self.pid and self._mark in environment_of(pid)]


class Driver(Program):
    """A corpus job as a program.

    Args:
        source: to read.
        dataset: to write.
        codec: directory of one.
        faults: dotted name of what fails -> factory in `worker_faults` that fails in its place, and its options.
        environment: variables that it gets.
        settings: of the job.
    """

    def __init__(self, source, dataset, codec, *, faults=None, environment=None, **settings):
        chosen = {"progress": False, "num_workers": 1, "unit_seconds": UNIT_SECONDS, **settings}
        argument = [str(source), str(dataset), {"codec": str(codec), **chosen}, faults or {}]
        super().__init__("tests.pipelines.corpus.corpus_driver", argument, environment or {})

    def end(self, timeout_s=120.0):
        """Wait for its end: exit code, what it counted if it got to its end, and the last line that it said."""
        code, printed, said = super().end(timeout_s)
        return code, json.loads(printed) if code == 0 else None, said


def all_pids():
    """Of this machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def environment_of(pid):
    """Variables that a process was started with; none where it is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def wait_until(condition, timeout_s=60.0, interval_s=0.01):
    """Whether something became true in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(interval_s)
    return False


def kill_heartbeats():
    """The actor that watches over the workers of this process's jobs dies, and Ray starts it anew."""
    import ray

    from pipelines.corpus import worker_watch

    ray.kill(worker_watch._heartbeats_of(worker_watch._driver()), no_restart=False)


def num_parts(dataset):
    """How many units are committed."""
    return len(list_parts(dataset))
