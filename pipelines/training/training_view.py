"""How a training run is doing: a table that stays in place on a terminal, a line per row of the log elsewhere.

It follows the log of the run directory, and so shows a run in this process and one on a cluster alike.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipelines.training.training_log import LOG, read_log

POLL_S = 0.5
_NOT_LOSSES = {"step", "steps", "rate_factor", "steps_per_s", "per_s", "seen", "wait_share", "minutes", "gradient_norm"}


@contextmanager
def training_view(run_dir: Path, title: str, *, shown: bool = True) -> Iterator[None]:
    """Show new rows of the log on stderr while the block runs."""
    if not shown:
        yield
        return
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(run_dir, title, stop), daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()


def row_line(row: dict[str, Any]) -> str:
    """One row of the log as a line for people."""
    losses = "  ".join(f"{name} {value:.4g}" for name, value in _losses(row).items())
    return f"step {row['step']}/{row['steps']}  {losses}  {_speed(row)}"


def row_table(row: dict[str, Any], title: str) -> Table:
    """One row of the log as a table."""
    table = Table(title=f"{title}: step {row['step']} of {row['steps']}", title_justify="left", show_header=False)
    table.add_row("speed", _speed(row))
    for name, value in _losses(row).items():
        share = row.get("shares", {}).get(name)
        table.add_row(name, f"{value:.4g}" + ("" if share is None else f"   {share:.0%} of the gradient"))
    for name, values in row.items():
        if isinstance(values, list):
            digits = 0 if max(values, default=0) >= 100 else 2
            table.add_row(f"{name} by level", " ".join(f"{value:.{digits}f}" for value in values))
    return table


def _follow(run_dir: Path, title: str, stop: threading.Event) -> None:
    console = Console(stderr=True, soft_wrap=True)
    before = _size(run_dir)  # rows of an earlier attempt are not news
    seen = len(read_log(run_dir))
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    latest: dict[str, Any] = {}  # what only some rows have stays in sight
    if live:
        live.start()
    while True:
        ending = stop.wait(POLL_S)
        if _size(run_dir) != before:
            before, rows = _size(run_dir), read_log(run_dir)
            seen = min(seen, len(rows))  # a resumed run has dropped some
            for row in rows[seen:]:
                latest |= row
                if live:
                    live.update(row_table(latest, title), refresh=True)
                else:
                    console.print(row_line(row), highlight=False)
            seen = len(rows)
        if ending:
            break
    if live:
        live.stop()


def _size(run_dir: Path) -> int:
    path = run_dir / LOG
    return path.stat().st_size if path.exists() else 0


def _losses(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, float) and name not in _NOT_LOSSES}


def _speed(row: dict[str, Any]) -> str:
    left = int((row["steps"] - row["step"]) / row["steps_per_s"])
    clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
    waiting = f", {row['wait_share']:.0%} waiting for data" if row["wait_share"] >= 0.005 else ""
    return f"{row['steps_per_s']:.2f} steps/s, {row['per_s']:.0f} {row['unit']}/s{waiting}, {clock} left"
