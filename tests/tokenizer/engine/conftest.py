"""Kernels of every instruction set that this machine has."""

import os

import pytest

from tokenizer.engine import library

if os.environ.get("QUANTONE_TEST_TILES") == "emulated":  # see test_tiles.py
    library._COMMON_FLAGS = (*library._COMMON_FLAGS, "-DEMULATED_TILES=1")


@pytest.fixture(params=library.LEVELS)
def kernels(request, monkeypatch):
    """The kernels of one instruction set; the tests that use it run once for each that is here."""
    monkeypatch.setenv("QUANTONE_ENGINE", request.param)
    found = library.find_kernels()
    if found is None or found.name != request.param:
        pytest.skip(f"no {request.param} here, or no compiler")
    return found


@pytest.fixture
def engine():
    """The best kernels that are here."""
    found = library.find_kernels()
    if found is None:
        pytest.skip("no kernels for this processor, or no compiler")
    return found
