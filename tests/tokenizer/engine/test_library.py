"""Kernels are compiled once, and a machine that cannot have them runs in torch."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import make_codec, tiny_spec
from tests.tokenizer.streaming import noise
from tokenizer.engine import library


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has compiled nothing yet, with an empty cache."""
    monkeypatch.setenv("QUANTONE_CACHE", str(tmp_path / "cache"))
    library._loaded.cache_clear()
    yield tmp_path / "cache"
    library._loaded.cache_clear()


def codec_runs_in_torch():
    """Whether a codec that shall use the engine does what torch does."""
    codec = make_codec(tiny_spec("patch"))
    exact = codec.with_precision("exact")
    waveform = 0.3 * noise(1, 1, 99)
    return exact.computed_by == "torch" and torch.equal(exact.encode(waveform).codes, codec.encode(waveform).codes)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"], ids=["missing", "failing"])
def test_without_a_compiler_networks_run_in_torch(fresh, monkeypatch, caplog, compiler):
    """It is said once, as a warning, and everything goes on."""
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.WARNING):
        assert library.find_kernels() is None
        assert codec_runs_in_torch()
    assert len([record for record in caplog.records if "networks run in torch" in record.message]) == 1


def test_a_cache_that_cannot_be_written_is_no_error(fresh, monkeypatch, tmp_path):
    """A file stands where the directory should be."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANTONE_CACHE", str(tmp_path / "file" / "cache"))
    assert library.find_kernels() is None


def test_plain_is_a_choice(monkeypatch):
    """QUANTONE_ENGINE=plain turns the kernels off, whatever is installed."""
    monkeypatch.setenv("QUANTONE_ENGINE", "plain")
    assert library.find_kernels() is None
    assert codec_runs_in_torch()


def test_other_processors_run_in_torch(fresh, monkeypatch):
    """The kernels are for x86-64."""
    monkeypatch.setattr(library.platform, "machine", lambda: "riscv64")
    assert library.find_kernels() is None


def test_unknown_instruction_sets_are_refused(monkeypatch):
    """A misspelt choice does not silently become another one."""
    monkeypatch.setenv("QUANTONE_ENGINE", "avx1024")
    with pytest.raises(ValueError, match="'avx1024' is not plain, avx2, avx512, avx512_vnni, avx512_bf16, amx"):
        library.find_kernels()


def test_the_choice_is_an_upper_limit(kernels):
    """A machine with wider vectors can be told to use narrower ones."""
    assert kernels.name in library.LEVELS
    assert kernels.has_bfloat == (kernels.name in ("avx512_bf16", "amx"))


def test_without_tiles_intels_bfloats_are_left_alone(monkeypatch):
    """Its vectors multiply them at half the rate of floats. Who asks for them gets them."""
    cpus = Path("/proc/cpuinfo")
    monkeypatch.delenv("QUANTONE_ENGINE", raising=False)
    usual = library.find_kernels()
    monkeypatch.setenv("QUANTONE_ENGINE", "amx")
    best = library.find_kernels()
    if usual is None or not cpus.is_file():
        pytest.skip("no kernels for this processor, or no compiler")
    of_intel = "GenuineIntel" in cpus.read_text()
    assert usual.name == ("avx512_vnni" if of_intel and best.name == "avx512_bf16" else best.name)


@pytest.mark.slow
def test_kernels_are_compiled_once(fresh, engine, monkeypatch):
    """The second process finds what the first one compiled, and needs no compiler."""
    compiled = sorted(fresh.glob("*.so"))
    assert len(compiled) == 2
    library._loaded.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = library.find_kernels()
    assert found is not None
    assert found.level == engine.level
    assert sorted(fresh.glob("*.so")) == compiled


def test_processes_that_begin_at_once_compile_once(engine, tmp_path):
    """A job starts as many processes as there are cores: one compiles, the others wait for it."""
    calls = tmp_path / "calls"
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "CXX": str(compiler), "QUANTONE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tokenizer.engine"]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate(timeout=250)[0] for process in started}
    assert len(said) == 1
    assert "torch" not in said.pop()
    linked = [line for line in calls.read_text().splitlines() if "-shared" in line]
    assert len(linked) == len(set((tmp_path / "cache").glob("*.so")))
