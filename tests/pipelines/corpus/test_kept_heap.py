"""Freed memory is kept for what comes next."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from pipelines.corpus.kept_heap import keep_heap

most, size = map(int, sys.argv[1:])
if most:
    keep_heap(most)
block = b"x" * size
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    block = b"x" * size
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of glibc")


@glibc
def test_a_block_that_was_freed_is_not_faulted_in_again():
    """128 MB four times are 131,072 pages: without, each of them is cleared by the kernel every time."""
    assert _page_faults(most=2**31 - 1, size=2**27) < 1000
    assert _page_faults(most=0, size=2**27) > 100_000


@glibc
def test_more_than_is_to_be_kept_goes_back():
    """Of a reader: short files stay in memory, what a long one took does not."""
    assert _page_faults(most=2**26, size=2**25) < 1000
    assert _page_faults(most=2**26, size=2**27) > 100_000


def _page_faults(*, most, size):
    command = [sys.executable, "-c", PROGRAM, str(most), str(size)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
