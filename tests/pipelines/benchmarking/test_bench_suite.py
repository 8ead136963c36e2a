"""All benchmarks in one run: rows by key, limits for those that can be counted, and a page that the run makes."""

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipelines.benchmarking import bench_suite
from pipelines.benchmarking.bench_charts import bars_svg
from pipelines.benchmarking.bench_document import charts_of, document, rows_table
from pipelines.benchmarking.bench_limits import with_limits
from pipelines.benchmarking.bench_plan import PlannedRows, chosen_rows, planned_rows
from pipelines.benchmarking.bench_results import BenchResults, read_results
from pipelines.benchmarking.bench_row import Result, Row
from pipelines.benchmarking.bench_suite import publish, run_suite
from pipelines.benchmarking.machine_card import describe_machine
from pipelines.benchmarking.machine_ceilings import Ceilings
from pipelines.benchmarking.suite_settings import SuiteSettings
from pipelines.cli import main

CEILINGS = Ceilings(threads=1, fp32_flops=1e11, bf16_flops=4e11, int8_flops=8e11, memory_bytes=3e10, cache_bytes=5e10)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def results():
    """A run with one row of each kind."""
    two = (Result("quantone exact", 50.0, (50.0,), 5.0), Result("encodec", 10.0, (10.0,), 1.0))
    rows = [
        Row("codec/encodec_24khz/12kbps/batch1/threads1", "encode", "x real time", two, "encodec"),
        Row("codec/encodec_24khz/6kbps/batch1/threads1", "encode", "x real time", two, "encodec"),
        Row("lm/12kbps", "compress", "x real time", (Result("quantone", 90.0, (90.0,), 30.0),), None),
        Row("lm/12kbps", "decompress 8 streams", "x real time", (Result("quantone", 30.0, (30.0,), 30.0),), None),
        Row("generate", "8 streams, 16 levels", "tokens/s", (Result("quantone, speech_24khz", 900.0, (9.0,)),)),
        Row("scan", "histograms of 16 levels", "million codes/s", (Result("PyArrow", 80.0, (80.0,), 1.0),), "PyArrow"),
        Row("pipeline", "speech_24khz, exact, 2 encoders", "x real time", (Result("the corpus job", 80.0, (80.0,)),)),
        Row("serve", "1 s of sound a request, 8 callers", "requests/s", (Result("quantone serve", 80.0, (80.0,)),)),
    ]
    return BenchResults(
        measured_on="2026-11-21",
        wall_seconds=400.0,
        command="quantone bench all",
        machine=dataclasses.replace(describe_machine(0.5), processor="A Processor", cores=2),
        ceilings=(CEILINGS,),
        rows=tuple(with_limits(rows, {1: CEILINGS}, SuiteSettings())),
        missing=("duckdb is not installed",),
    )


def test_work_that_can_be_counted_has_a_limit(results):
    """And only the service has none: what it does is no arithmetic."""
    limits = {(row.key.split("/")[0], row.work): row.results[0].limit for row in results.rows}
    assert limits.pop(("serve", "1 s of sound a request, 8 callers")) is None
    assert all(limit > 0 for limit in limits.values())
    assert limits["codec", "encode"] < 1e11 / (2 * 1.2464e9)  # no faster than its multiplications
    assert limits["scan", "histograms of 16 levels"] == pytest.approx(3e10 / 2 / 1e6)


def test_a_run_survives_its_file(results, tmp_path):
    (tmp_path / "a.json").write_text(results.to_json())
    (read,) = read_results(tmp_path)
    assert read.machine == results.machine
    assert [row.command for row in read.rows] == [row.command for row in results.rows]
    assert read.rows[0].results[0].limit == pytest.approx(results.rows[0].results[0].limit, rel=1e-4)
    assert BenchResults.from_json(read.to_json()) == read


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match=r"other\.json: not results"):
        read_results(tmp_path)


def test_every_row_of_the_page_has_the_command_that_repeats_it(results):
    page = document([results])
    for row in results.rows:
        assert f"`{row.command}` |" in page
    assert "A Processor, 2 cores" in page
    assert "Not measured: duckdb is not installed" in page
    assert "| encode, 12 kbps, batch 1, threads 1 | 50 (5.00) | 10 |" in page
    assert "fp32 100 GFLOP/s, bf16 400 GFLOP/s" in page


def test_charts_are_pictures_on_their_own(results):
    charts = charts_of([results])
    assert set(charts) == {"a-processor-2-cores-encodec_24khz.svg", "a-processor-2-cores-limit.svg"}
    for svg in charts.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own


def test_a_bar_is_as_long_as_its_value():
    svg = ElementTree.fromstring(bars_svg("a < b", [("one", [("x", 5.0), ("y", 10.0)]), ("two", [("x", 2.5)])]))  # noqa: S314
    bars = [element for element in svg if element.tag.endswith("rect")]
    widths = [float(bar.get("width")) for bar in bars]
    assert [width / widths[1] for width in widths] == pytest.approx([0.5, 1.0, 0.25], abs=0.01)
    assert bars[0].get("fill") == bars[2].get("fill") != bars[1].get("fill")


def test_rows_are_chosen_by_key_beginning_or_pattern():
    keys = [planned.key for planned in planned_rows(SuiteSettings())]

    def chosen(*only):
        return [planned.key for planned in chosen_rows(planned_rows(SuiteSettings()), only)]

    assert chosen() == keys
    assert chosen("scan") == ["scan"]
    assert chosen("lm") == ["lm/3kbps", "lm/12kbps"]
    assert set(chosen("codec/*/12kbps/batch8/threads2")) == {key for key in keys if key.endswith("batch8/threads2")}
    assert chosen("codec/encodec_24khz/6kbps/batch1/threads1") == ["codec/encodec_24khz/6kbps/batch1/threads1"]
    with pytest.raises(ValueError, match=r"no row 'codek': there are codec/"):
        chosen("codek")


def test_rows_of_this_machine_are_measured(tiny_codec_dir, capsys, tmp_path):
    """Quickly, by the command: figures are shown with their limits and written as JSON; nothing is published."""
    figures = tmp_path / "run.json"
    arguments = ["--quick", "--codec", str(tiny_codec_dir), "--only", "codec/tiny/*/batch1/threads1"]
    assert main(["bench", "all", *arguments, "--json", str(figures), "--root", str(tmp_path)]) == 0
    assert "quantone fast" in capsys.readouterr().out
    run = json.loads(figures.read_text())
    assert [row["work"] for row in run["rows"]] == ["encode", "decode"]
    assert all(result["limit"] > 0 for row in run["rows"] for result in row["results"])
    assert run["command"].endswith("batch1/threads1 --quick")
    assert [ceilings["threads"] for ceilings in run["ceilings"]] == [1, 2]
    assert list(tmp_path.iterdir()) == [figures]


def test_a_package_that_is_missing_leaves_its_rows_out(monkeypatch):
    def measure(run):
        raise ImportError("duckdb is not installed")

    other = PlannedRows("scan", lambda _: [Row("scan", "a", "b", (Result("c", 1.0, (1.0,)),))])
    monkeypatch.setattr(bench_suite, "planned_rows", lambda _: [PlannedRows("serve", measure), other])
    run = run_suite(SuiteSettings.quick())
    assert run.missing == ("serve: duckdb is not installed",)
    assert [row.key for row in run.rows] == ["scan"]


def test_a_published_run_is_on_the_page(results, tmp_path):
    path = publish(results, tmp_path)
    assert path == tmp_path / "benchmarks" / "results" / "a-processor-2-cores.json"
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    for name in charts_of([results]):
        assert f"(benchmarks/{name})" in page
        assert (tmp_path / "docs" / "benchmarks" / name).exists()
    assert rows_table(results.rows).row_count == sum(len(row.results) for row in results.rows)


def test_the_page_of_the_repository_is_that_of_its_results():
    """`quantone bench all` wrote it, and nobody has changed it since."""
    runs = read_results(ROOT / "benchmarks" / "results")
    assert runs
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == document(runs)
    for name, svg in charts_of(runs).items():
        assert (ROOT / "docs" / "benchmarks" / name).read_text(encoding="utf-8") == svg
