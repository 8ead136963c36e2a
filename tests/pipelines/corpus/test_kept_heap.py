"""Freed memory is kept for what comes next."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from pipelines.corpus.kept_heap import keep_heap

if sys.argv[1] == "kept":
    keep_heap()
block = b"x" * 2**27
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    block = b"x" * 2**27
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of glibc")
def test_a_block_that_was_freed_is_not_faulted_in_again():
    """128 MB four times are 131,072 pages: without, each of them is cleared by the kernel every time."""
    faults = {how: _page_faults(how) for how in ("left alone", "kept")}
    assert faults["kept"] < 1000
    assert faults["left alone"] > 100_000


def _page_faults(how):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)
