"""What planning a large corpus costs: python benchmarks/plan_of_a_million.py [--files N] [--on-disk].

Makes the plan of a simulated corpus with a travelling text column, writes it, reads it back, compares it with a fresh
listing and goes through all its units, as a job does that starts again. With --on-disk the listing is that of a real
directory of empty files, made for the purpose in the temporary directory. Prints seconds of each step and the peak
resident memory of the process so far. Exits with 1 if listing and planning took more than 60 s or 1 GB; going on holds
the old plan and the new listing side by side, and may take more.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from pipelines.datasets.listing import listing_from, with_extra
from pipelines.datasets.plan import Plan, describe_difference, make_plan
from pipelines.inputs.sources import list_source

MOST_SECONDS, MOST_GIGABYTES = 60.0, 1.0
_out = Console(highlight=False)


def main() -> int:
    """Run the steps, print the figures; 1 where the limits are passed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--unit-seconds", type=float, default=3600.0)
    parser.add_argument("--on-disk", action="store_true", help="list real, empty files instead of a simulated listing")
    arguments = parser.parse_args()
    with _corpus(arguments.files, on_disk=arguments.on_disk) as (name, make_listing):
        _out.print(f"{arguments.files:,} files, {name}")
        started = time.monotonic()
        with _step("listing"):
            listing = make_listing()
        with _step("plan made and written"):
            content = make_plan(listing, arguments.unit_seconds).to_parquet()
        made = time.monotonic() - started, _peak_gigabytes()
        with _step("plan read back"):
            plan = Plan.from_parquet(content)
        with _step("compared with the listing"):
            if describe_difference(plan, listing) is not None:
                raise RuntimeError("a plan differs from its own listing")
        with _step("all units as objects"):
            seen = sum(len(plan.unit(number)) for number in range(plan.num_units))
    _out.print(f"{seen:,} files in {plan.num_units:,} units, {plan.audio_seconds / 3600:,.0f} h; ", end="")
    _out.print(f"plan.parquet {len(content) / 1e6:.1f} MB; made in {made[0]:.1f} s and {made[1]:.2f} GB")
    return int(made[0] > MOST_SECONDS or made[1] > MOST_GIGABYTES)


@contextmanager
def _corpus(num_files: int, *, on_disk: bool) -> Iterator[tuple[str, Callable[[], pa.Table]]]:
    if not on_disk:
        yield "simulated", lambda: _simulated(num_files)
        return
    with tempfile.TemporaryDirectory() as root:
        for index in range(num_files):
            folder = Path(root, f"{index // 1000:05d}")
            if index % 1000 == 0:
                folder.mkdir()
            (folder / f"{index:09d}.flac").touch()
        yield "on disk", lambda: list_source(root)


def _simulated(num_files: int) -> pa.Table:
    sizes = np.random.default_rng(0).integers(30_000, 600_000, num_files)
    ids = _strings(num_files, lambda index: f"speaker{index // 500:06d}/chapter{index // 50:07d}/{index:09d}.flac")
    uris = pc.binary_join_element_wise("s3://a-bucket-of-speech/corpora/read-aloud/", ids, "")
    text = _strings(num_files, lambda index: hashlib.sha256(b"%d" % index).hexdigest())
    return with_extra(listing_from({"id": ids, "uri": uris, "size": pa.array(sizes)}), pa.table({"text": text}))


def _strings(count: int, make: Callable[[int], str], step: int = 10_000) -> pa.ChunkedArray:
    chunks = [pa.array(map(make, range(start, min(start + step, count)))) for start in range(0, count, step)]
    return pa.chunked_array(chunks)


@contextmanager
def _step(name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    _out.print(f"{name:>26}: {time.monotonic() - started:6.2f} s, {_peak_gigabytes():.2f} GB at most so far")


def _peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    sys.exit(main())
