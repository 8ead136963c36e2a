"""Ways in which files go bad, and a small dataset to try them on."""

from pathlib import Path

import numpy as np

from pipelines.datasets.dataset_info import DatasetInfo
from pipelines.datasets.parts import ErrorRow
from tests.conftest import tiny_spec
from tests.pipelines.small_datasets import write_units
from tests.pipelines.token_rows import token_row

SPEC = tiny_spec()
INFO = DatasetInfo(
    codec={"name": "tiny", "sha256": "0" * 64, "source": "tiny", "spec": SPEC.to_dict()},
    bandwidth_kbps=SPEC.bandwidth_kbps,
    num_codebooks=4,
    resampler="sinc",
    plan_sha256="",
)


def write_small(root, num_units=3, rows_per_unit=3, num_frames=40, errors=True):
    """Units of random codes, and one error in the first; returns the directory."""
    rng = np.random.default_rng(0)
    units = [
        [
            token_row(f"{unit}/{row}.wav", rng.integers(0, SPEC.codebook_size, (4, num_frames)))
            for row in range(rows_per_unit)
        ]
        for unit in range(num_units)
    ]
    failed = [ErrorRow("0/bad.wav", "/nowhere/0/bad.wav", "AudioError", "empty")] if errors else []
    write_units(root, INFO, units, failed)
    return Path(root)


def flip_bit(path, position, bit=0):
    """One bit of a file, changed in place."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def part_of(dataset, unit=0):
    """The path of a unit's part."""
    return Path(dataset, "parts", f"part-{unit:05d}.parquet")


def record_of_unit(dataset, unit=0):
    """The path of a unit's commit record."""
    return next(Path(dataset, "records").glob(f"part-{unit:05d}.*.json"))
