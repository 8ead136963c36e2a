"""The one place that imports torchaudio, also where its native extension cannot be loaded.

torchaudio 2.11 is the last release on PyPI, and its wheel is linked against CUDA libraries. With a CPU build of
torch the extension therefore fails to load and takes the whole import down, although resampling and spectrograms
are pure torch. torchaudio itself has a path for installations without the extension; we select that same path,
and only in this one case: with CUDA builds, or for any other reason of failure, the original error is raised.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

import torch

_CUDA_LIBRARIES = ("libc10_cuda", "libtorch_cuda", "libcudart")


def import_torchaudio() -> types.ModuleType:
    """Import torchaudio, without its native extension if that needs CUDA libraries which a CPU torch lacks.

    Returns:
        The torchaudio module. `functional`, `transforms` and resampling work either way; what needs the native
        extension (forced alignment, RNN-T loss) raises when called. Loading files is never torchaudio's work here.

    Raises:
        OSError: the extension is broken for another reason than missing CUDA libraries.
    """
    try:
        return importlib.import_module("torchaudio")
    except OSError as error:
        if torch.version.cuda is not None or not _misses_cuda_libraries(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    sys.modules["torchaudio._extension"] = _extension_stand_in()
    return importlib.import_module("torchaudio")


def _misses_cuda_libraries(error: BaseException | None) -> bool:
    """Whether an import error, or one that it came from, names a CUDA library."""
    while error is not None:
        if any(library in str(error) for library in _CUDA_LIBRARIES):
            return True
        error = error.__cause__ or error.__context__
    return False


def _extension_stand_in() -> types.ModuleType:
    """`torchaudio._extension` as it looks to torchaudio where the shared library is absent."""

    def unavailable(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("this function needs torchaudio's native extension, which a CPU build of torch cannot load")

    def fail_if_no_align(_: Callable[..., Any]) -> Callable[..., NoReturn]:
        return unavailable

    stand_in = types.ModuleType("torchaudio._extension")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio._extension", None)
    vars(stand_in).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=fail_if_no_align,
        _load_lib=lambda _: False,
        _check_cuda_version=lambda: None,
    )
    return stand_in
