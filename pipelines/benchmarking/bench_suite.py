"""All benchmarks in one run: `quantone bench all`."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.benchmarking.bench_document import write_document
from pipelines.benchmarking.bench_limits import with_limits
from pipelines.benchmarking.bench_plan import BenchRun, chosen_rows, planned_rows
from pipelines.benchmarking.bench_results import BenchResults, read_results
from pipelines.benchmarking.bench_row import Row
from pipelines.benchmarking.machine_card import describe_machine, load_now
from pipelines.benchmarking.machine_ceilings import Ceilings, measure_ceilings
from pipelines.benchmarking.suite_settings import SuiteSettings

RESULTS, DOCUMENT = Path("benchmarks", "results"), Path("docs", "benchmarks.md")


def run_suite(
    settings: SuiteSettings,
    only: Sequence[str] = (),
    *,
    command: str = "quantone bench all",
    show: Callable[[Row], None] = lambda _: None,
) -> BenchResults:
    """Measure rows, one after another; the contenders of each take turns.

    Ceilings are measured before and after, and the better ones count: other work on the machine only lowers them.

    Args:
        settings: how much is measured.
        only: keys, beginnings of keys or shell patterns; none for all.
        command: that is said to have made the run.
        show: is given each row when it is there.

    Raises:
        ValueError: a pattern that fits no row.
        QuantoneError: a codec or language model that is not there.
    """
    planned = chosen_rows(planned_rows(settings), only)
    load_before, begin = load_now(), time.perf_counter()
    before = _ceilings(settings)
    run = BenchRun(settings)
    rows: list[Row] = []
    for part in planned:
        try:
            measured = part.measure(run)
        except ImportError as error:  # a peer, or an extra of ours
            run.say_missing(f"{part.key}: {error}")
            continue
        for row in measured:
            rows.append(row)
            show(row)
    ceilings = {threads: best.at_best(before[threads]) for threads, best in _ceilings(settings).items()}
    return BenchResults(
        measured_on=datetime.datetime.now(datetime.UTC).date().isoformat(),
        wall_seconds=time.perf_counter() - begin,
        command=command,
        machine=describe_machine(load_before),
        ceilings=tuple(ceilings.values()),
        rows=tuple(with_limits(rows, ceilings, settings)),
        missing=tuple(run.missing),
    )


def _ceilings(settings: SuiteSettings) -> dict[int, Ceilings]:
    return {threads: measure_ceilings(threads, seconds=settings.ceiling_s) for threads in (1, 2)}


def publish(results: BenchResults, root: Path) -> Path:
    """Keep a run as that of its machine, and write the document of all machines again.

    Args:
        results: of a whole run.
        root: of a checkout; `benchmarks/results/` and `docs/` in it.

    Returns:
        The file of the run.
    """
    path = root / RESULTS / f"{results.machine.slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(results.to_json(), encoding="utf-8")
    write_document(read_results(path.parent), root / DOCUMENT)
    return path
