"""torchaudio works with a CPU build of torch, and a broken installation is never papered over."""

import importlib
import sys
import types

import pytest
import torch

from tokenizer import torchaudio_import
from tokenizer.torchaudio_import import import_torchaudio


class FakeImports:
    """`importlib.import_module` for "torchaudio": fails first as told, then gives a module."""

    def __init__(self, failure: BaseException | None) -> None:
        self.failure, self.calls = failure, 0

    def __call__(self, name: str) -> types.ModuleType:
        assert name == "torchaudio"
        self.calls += 1
        if self.failure is not None and self.calls == 1:
            raise self.failure
        return types.ModuleType("torchaudio")


@pytest.fixture
def scratch_modules():
    """What the test does to torchaudio's entries in sys.modules is undone."""
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchaudio"}
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    sys.modules.update(kept)


def missing_cuda() -> OSError:
    """What importing torchaudio raises without CUDA: the reason may be one error further down."""
    error = OSError("Could not load this library: _torchaudio.abi3.so")
    error.__cause__ = OSError("libtorch_cuda.so: cannot open shared object file: No such file or directory")
    return error


def test_resampling_and_mel_filters_work():
    """Whatever build of torch is installed, the two things we need torchaudio for are there."""
    torchaudio = import_torchaudio()
    assert torchaudio.functional.resample(torch.ones(1, 100), 48000, 24000).shape == (1, 50)
    assert torchaudio.functional.melscale_fbanks(513, 0.0, 12000.0, 80, 24000).shape == (513, 80)
    assert import_torchaudio() is torchaudio


def test_missing_cuda_libraries_select_the_path_without_extension(monkeypatch, scratch_modules):
    """Only then; and what needs the extension says so when it is called."""
    monkeypatch.setattr(torch.version, "cuda", None)
    imports = FakeImports(missing_cuda())
    monkeypatch.setattr(importlib, "import_module", imports)
    import_torchaudio()
    assert imports.calls == 2
    extension = sys.modules["torchaudio._extension"]
    assert not extension._IS_TORCHAUDIO_EXT_AVAILABLE
    with pytest.raises(RuntimeError, match="native extension"):
        extension.fail_if_no_align(lambda: None)(1, key=2)


@pytest.mark.parametrize(
    ("failure", "cuda"),
    [(OSError("invalid ELF header"), None), (missing_cuda(), "12.8"), (ModuleNotFoundError("torchaudio"), None)],
    ids=["broken file", "torch with CUDA", "not installed"],
)
def test_any_other_failure_is_raised_as_it_is(monkeypatch, scratch_modules, failure, cuda):
    """Hiding a broken installation would only move the error to a place that says less."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(importlib, "import_module", FakeImports(failure))
    with pytest.raises(type(failure)) as raised:
        import_torchaudio()
    assert raised.value is failure


def test_a_working_torchaudio_is_left_alone(monkeypatch, scratch_modules):
    """No stand-in where the real import succeeds."""
    before = sys.modules.get("torchaudio._extension")
    imports = FakeImports(None)
    monkeypatch.setattr(torchaudio_import.importlib, "import_module", imports)
    import_torchaudio()
    assert imports.calls == 1
    assert sys.modules.get("torchaudio._extension") is before
