"""What going on costs: python benchmarks/resume_of_many_units.py [--units N] [--errors] [--dataset s3://BUCKET/NAME].

Makes a dataset of which all units but the last are there, each with its record (one part and one record under many
names), and starts the job again. Prints seconds until it knows what is left, until it is about to read the first input
of the new unit on a Ray that runs already, and how long the same command takes when nothing is left. With --errors,
every unit has failed inputs too, and the job is told how many may fail. Exits with 1 if the job took more than 5 s to
begin.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pipelines import storage
from pipelines.bundled_speech import DEMO_SPEECH
from pipelines.corpus.bundle_reader import read_bundle
from pipelines.corpus.corpus_job import CorpusJob, open_job
from pipelines.corpus.encoder import EncodedBundle, Encoder, EncodeSettings
from pipelines.corpus.job_settings import JobSettings
from pipelines.corpus.job_summary import ErrorLimit
from pipelines.corpus.unit_commit import Target, UnitInputs, commit_unit
from pipelines.datasets.commit_record import list_records, record_name
from pipelines.datasets.parts import ErrorRow, PartFormat, part_name
from pipelines.datasets.plan import estimate_seconds
from pipelines.inputs.sources import SourceFile
from pipelines.progress import Progress
from pipelines.ray_session import ray_session

CODEC = "speech_24khz"
SPEECH = DEMO_SPEECH / "en-us" / "slt-bread.flac"
MOST_SECONDS = 5.0
_out = Console(highlight=False)


def main() -> int:
    """Make the dataset, go on with it, print the figures; 1 where the limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--errors", action="store_true", help="one input of each unit failed, and not all may")
    parser.add_argument("--dataset", help="where to write, such as s3://BUCKET/NAME; default: a temporary directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, dataset = Path(folder, "source"), arguments.dataset or f"{folder}/tokens"
        settings = _make_source(source, arguments.units, may_fail=0.9 if arguments.errors else None)
        with _step("the dataset was made"):
            job = open_job(source, dataset, CODEC, settings)
            _commit_most(job, with_errors=arguments.errors)
        with ray_session():
            begin = time.monotonic()
            with _step("what is left was known"):
                left = _go_on(source, dataset, settings)
            with _step("the first input was about to be read"):
                from pipelines.corpus.job_metrics import JobMetrics

                left.conductor(Progress("", shown=False), JobMetrics(left.root, CODEC))
            began_after = time.monotonic() - begin
        _out.print(f"{len(left.pending):,} of {left.plan.num_units:,} units left, began after {began_after:.2f} s")
        _copy(left, [left.plan.num_units - 1])
        with _step("the command found nothing to do, and ended"):
            _run_command(source, dataset, settings)
    return int(began_after > MOST_SECONDS)


def _make_source(folder: Path, num_units: int, *, may_fail: float | None) -> JobSettings:
    """Two inputs for each unit, all of them one file."""
    folder.mkdir()
    for number in range(2 * num_units):
        first = folder / f"{number // 20_000:03d}-000000.flac"  # a file system allows so many names for one file
        if number % 20_000 == 0:
            first.write_bytes(SPEECH.read_bytes())
        else:
            (folder / f"{number // 20_000:03d}-{number:06d}.flac").hardlink_to(first)
    length = estimate_seconds(SourceFile(id=SPEECH.name, uri=str(SPEECH), size=SPEECH.stat().st_size))
    return JobSettings(unit_seconds=2.5 * length, max_error_rate=may_fail)


def _commit_most(job: CorpusJob, *, with_errors: bool) -> None:
    """Commit the first unit as the job does, and give its files to all others but the last."""
    files = job.plan.unit(0)
    _, items = read_bundle(files, job.read_settings)
    if with_errors:
        items[1] = ErrorRow(files[1].id, files[1].uri, "AudioError", "not audio, or damaged")
    num_codebooks = job.info.num_codebooks
    _, rows = Encoder(job.codec, EncodeSettings(num_codebooks, job.settings.batch_seconds)).encode_bundle(None, items)
    form = PartFormat(spec=job.codec.spec, num_codebooks=num_codebooks, card=job.info.codec)
    extra = job.plan.extra(0)  # noqa: S610 - a method of Plan, not of Django
    inputs = UnitInputs(0, [file.id for file in files], [file.uri for file in files], extra)
    commit_unit(inputs, Target(job.root, form), EncodedBundle(rows.rows, rows.padded_seconds))
    _copy(job, range(1, job.plan.num_units - 1))


def _copy(job: CorpusJob, units: Iterable[int]) -> None:
    """The files of the first unit under the names of others."""
    name, digits = list_records(job.root)[0][0]
    names = {f"records/{name}": lambda unit: f"records/{record_name(unit, digits)}"}
    for folder in ("parts", "errors"):
        if storage.list_names(storage.join(job.root, folder)):
            names[f"{folder}/{part_name(0)}"] = lambda unit, folder=folder: f"{folder}/{part_name(unit)}"
    contents = {own: storage.read_bytes(storage.join(job.root, own)) for own in names}

    def write(unit: int) -> None:
        for own, name_of in names.items():
            uri = storage.join(job.root, name_of(unit))
            if storage.is_s3(uri):
                storage.commit(uri, contents[own])
            else:
                Path(uri).write_bytes(contents[own])  # without the syncing

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, units))


def _go_on(source: Path, dataset: str, settings: JobSettings) -> CorpusJob:
    job = open_job(source, dataset, CODEC, settings)
    ErrorLimit(settings.max_error_rate, job.plan.num_files, job.root)
    return job


def _run_command(source: Path, dataset: str, settings: JobSettings) -> None:
    program = "import sys; from pipelines.cli import main; sys.exit(main(sys.argv[1:]))"
    limit = [] if settings.max_error_rate is None else ["--max-error-rate", str(settings.max_error_rate)]
    command = [sys.executable, "-c", program, "tokenize", str(source), dataset, "--quiet", *limit]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(command, check=True, env=environment)  # noqa: S603 - our own command


@contextmanager
def _step(name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    _out.print(f"{name:>42}: {time.monotonic() - started:6.2f} s")


if __name__ == "__main__":
    sys.exit(main())
