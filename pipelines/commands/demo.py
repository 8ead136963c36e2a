"""The demo: bundled speech to tokens, two queries, back to sound at two bandwidths, and a report to look at."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path

import polars as pl
from rich.console import Console

from pipelines.bundled_speech import DEMO_SPEECH
from pipelines.commands.frame_output import frame_table
from pipelines.corpus.corpus_job import tokenize_corpus
from pipelines.datasets.dataset import open_dataset
from pipelines.datasets.dataset_info import read_dataset_info
from pipelines.decoding.decode_job import decode_dataset
from pipelines.polars_namespace import LazyCodes
from pipelines.ray_session import ray_session
from pipelines.reporting.report import write_report
from tokenizer import CodecSpec


def run_demo(out_dir: str | Path = Path("quantone-demo"), codec: str | Path = "speech_24khz") -> None:
    """Run the whole round trip on the bundled speech; what is there from an earlier run is used or replaced.

    Args:
        out_dir: gets tokens/, audio-*kbps/ and report.html.
        codec: name or directory for `load_codec`.

    Raises:
        CheckpointError: no such codec.
        DatasetError: out_dir holds the tokens of another codec.
    """
    started = time.monotonic()
    out_dir = Path(out_dir)
    tokens, report = out_dir / "tokens", out_dir / "report.html"
    console = Console(highlight=False, soft_wrap=True)
    _say(console, 1, "Speech to tokens", f"starting Ray on this machine; {DEMO_SPEECH} to {tokens}")
    with ray_session():
        summary = tokenize_corpus(DEMO_SPEECH, tokens, codec=codec)
        console.print(
            f"   {summary.num_files} clips: {summary.num_ok} tokenized, {summary.num_errors} errors, "
            f"{summary.num_skipped} done before"
        )
        _say(console, 2, "Queries", "Polars reads the Parquet parts, and of those only the columns it needs")
        show_queries(tokens, console)
        spec = CodecSpec.from_dict(read_dataset_info(tokens).codec["spec"])
        folders = {kbps: out_dir / f"audio-{kbps:g}kbps" for kbps in demo_bandwidths(spec)}
        _say(console, 3, "Tokens to speech", f"at {' and '.join(f'{kbps:g}' for kbps in folders)} kbps")
        for kbps, folder in folders.items():
            decode_dataset(tokens, folder, bandwidth_kbps=kbps)
    _say(console, 4, "Report", "players, spectrograms, codebook use, quality")
    write_report(tokens, report)
    console.print(f"\n[bold green]Done[/] in {time.monotonic() - started:.0f} s.\n")
    _say_what_next(console, tokens, list(folders.values()), report)


def demo_bandwidths(spec: CodecSpec) -> tuple[float, ...]:
    """A middling and the highest customary bandwidth of a codec, ascending: 3 and 12 kbps of 1.5, 3, 6 and 12."""
    listed = spec.bandwidths_kbps
    return tuple(sorted({listed[(len(listed) - 1) // 2], listed[-1]}))


def show_queries(tokens: Path, console: Console) -> None:
    """Print two queries and their results: what is in the dataset, and what its coarsest level looks like."""
    language = pl.col("id").str.split("/").list.first().alias("language")
    per_language = (
        open_dataset(tokens)
        .group_by(language)
        .agg(
            pl.len().alias("clips"),
            pl.col("duration_s").sum().round(1).alias("seconds"),
            pl.col("num_frames").sum().alias("frames"),
            pl.col("source_sample_rate").unique().sort().alias("rates (Hz)"),
            pl.col("rms_dbfs").mean().round(1).alias("dBFS"),
        )
        .sort("seconds", descending=True)
        .collect()
    )
    console.print(
        '\n   [cyan]open_dataset(tokens).group_by(language).agg(pl.len(), pl.col("duration_s").sum(), ...)[/]'
    )
    console.print(frame_table(per_language))
    histogram = LazyCodes(open_dataset(tokens)).histogram(0)
    most_used = (
        histogram.sort("count", "code", descending=[True, False])
        .with_columns((100 * pl.col("count") / pl.col("count").sum()).round(2).alias("% of frames"))
        .head(5)
    )
    used = histogram.filter(pl.col("count") > 0).height
    console.print('   [cyan]open_dataset(tokens).codes.histogram(0).sort("count", descending=True).head(5)[/]')
    console.print(frame_table(most_used))
    console.print(f"   {used} of the {histogram.height} entries of the coarsest level occur in these clips")


def _say(console: Console, number: int, title: str, detail: str) -> None:
    console.print(f"\n[bold]{number}. {title}[/]  [dim]{detail}[/]")


def _say_what_next(console: Console, tokens: Path, folders: list[Path], report: Path) -> None:
    command = _command()
    made = {
        "tokens": f"{tokens}  (Parquet; dataset.json says which codec)",
        "audio": ", ".join(str(folder) for folder in folders),
        "report": f"{report}  ({report.stat().st_size / 1e6:.1f} MB, self-contained: open {report.resolve().as_uri()})",
    }
    for name, where in made.items():
        console.print(f"  [bold]{name:7}[/] {where}", markup=True)
    console.print("\nNext:")
    sql = "SELECT id, duration_s FROM tokens ORDER BY duration_s DESC LIMIT 5"
    console.print(f'  {command} query {shlex.quote(str(tokens))} "{sql}"', markup=False)
    console.print(f"  {command} tokenize YOUR_AUDIO/ tokens/", markup=False)
    console.print(f"  {command} decode tokens/ audio/ --bandwidth 6", markup=False)


def _command() -> str:
    """How to call quantone from this shell: its name, or its path where the environment is not activated."""
    program = Path(sys.argv[0])
    if shutil.which("quantone") or program.name != "quantone":
        return "quantone"
    return shlex.quote(str(program))
