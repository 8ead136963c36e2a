"""The compiled kernels: built from the sources beside this file when they are first needed, and kept in a cache.

No compiler, no kernels: networks then run in torch, as they do where the processor has none of the instruction sets.

Environment:
    QUANTONE_ENGINE: "plain" for no kernels, or the highest instruction set to use, one of LEVELS.
    QUANTONE_CACHE: where compiled kernels are kept; default: quantone/ in the user's cache directory.
    CXX: the compiler; default: the first of c++, g++ and clang++ that is there.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from tokenizer.engine.structures import declare

Numbers = Literal["float32", "int16", "bfloat16"]
LEVELS = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")
PLAIN = "plain"
_SOURCES = Path(__file__).parent / "kernels"
_WIDE = ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_FLAGS = {
    "dispatch": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": _WIDE,
    "avx512_vnni": (*_WIDE, "-mavx512vnni"),
    "avx512_bf16": (*_WIDE, "-mavx512bf16", "-mavx512vnni"),
    "amx": (*_WIDE, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}
_FAST_NUMBERS: dict[str, Numbers] = {"avx512_vnni": "int16", "avx512_bf16": "bfloat16", "amx": "bfloat16"}
_COMMON_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-w")
_BUILD_TIMEOUT_S = 600
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels of one instruction set."""

    library: ctypes.CDLL
    level: int

    @property
    def name(self) -> str:
        """Of the instruction set."""
        return LEVELS[self.level]

    @property
    def fast_numbers(self) -> Numbers:
        """Those that are multiplied fastest, of at least 16 bits."""
        return _FAST_NUMBERS.get(self.name, "float32")

    @property
    def has_bfloat(self) -> bool:
        """Whether bfloats are multiplied faster than floats."""
        return self.fast_numbers == "bfloat16"

    @property
    def has_bytes(self) -> bool:
        """Whether products of bytes are the fastest of all."""
        return self.name in ("avx512_vnni", "avx512_bf16")

    def pack(self, weights: Tensor, *, narrow: bool) -> Tensor:
        """Weights [columns, depth] as the kernels read them."""
        columns, depth = weights.shape
        values = weights.detach().float().contiguous()
        size = self.library.quantone_packed_floats(self.level, columns, depth // 2 if narrow else depth)
        packed = torch.empty(size, dtype=torch.float32)
        self.library.quantone_pack(self.level, values.data_ptr(), columns, depth, int(narrow), packed.data_ptr())
        return packed

    def pack_compact(self, weights: Tensor, *, in_bytes: bool) -> Tensor | None:
        """Recurrent weights [columns, depth] in 24 bits, or in 8; None where these kernels do not read them so."""
        columns, depth = weights.shape
        size = self.library.quantone_compact_floats(self.level, columns, depth, int(in_bytes))
        if size == 0:
            return None
        values = weights.detach().float().contiguous()
        packed = torch.empty(size, dtype=torch.float32)
        pointers = values.data_ptr(), packed.data_ptr()
        self.library.quantone_pack_compact(self.level, pointers[0], columns, depth, int(in_bytes), pointers[1])
        return packed

    def unpack_fixed(self, packed: Tensor, columns: int, depth: int) -> Tensor:
        """The weights [columns, depth] that compact ones of 24 bits stand for."""
        values = torch.empty(columns, depth)
        self.library.quantone_unpack_fixed(self.level, packed.data_ptr(), columns, depth, values.data_ptr())
        return values


def find_kernels() -> Kernels | None:
    """The best kernels for this machine; None where networks have to run in torch.

    Raises:
        ValueError: QUANTONE_ENGINE names no instruction set.
    """
    wanted = os.environ.get("QUANTONE_ENGINE")
    if wanted == PLAIN:
        return None
    if wanted is not None and wanted not in LEVELS:
        raise ValueError(f"QUANTONE_ENGINE {wanted!r} is not {PLAIN}, {', '.join(LEVELS)}")
    dispatch = _loaded("dispatch")
    if dispatch is None:
        return None
    if wanted is None:
        level = dispatch.quantone_usual_level()
    else:
        level = min(dispatch.quantone_best_level(), LEVELS.index(wanted))
    library = None if level < 0 else _loaded(LEVELS[level])
    return None if library is None else Kernels(library, level)


@functools.cache
def _loaded(unit: str) -> ctypes.CDLL | None:
    """One instruction set's kernels, or the functions that find out which ones run here."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    try:
        library = ctypes.CDLL(str(_compiled(unit)))
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("no fast kernels, networks run in torch: %s", error)
        return None
    declare(library)
    return library


def _compiled(unit: str) -> Path:
    """The library of exactly these sources, compiled if no process on this machine has done it before.

    Raises:
        OSError, subprocess.SubprocessError: there is no compiler, it failed, or the cache cannot be written.
    """
    digest = hashlib.sha256(repr((_COMMON_FLAGS, _FLAGS[unit])).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    path = _cache() / f"{unit}-{digest.hexdigest()[:16]}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock, TemporaryDirectory(dir=path.parent) as directory:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a job starts many processes at once, and one compilation is enough
            if not path.is_file():
                _compile(unit, Path(directory)).replace(path)  # in one step: others may be looking
    return path


def _cache() -> Path:
    chosen = os.environ.get("QUANTONE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantone"


def _compile(unit: str, directory: Path) -> Path:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((found for found in map(shutil.which, names) if found), None)
    if compiler is None:
        raise FileNotFoundError(f"no C++ compiler: none of {', '.join(names)} is installed")
    objects = []
    for name in dict.fromkeys(("dispatch", unit)):
        objects.append(str(directory / f"{name}.o"))
        source = str(_SOURCES / f"{name}.cpp")
        _run(compiler, *_COMMON_FLAGS, *_FLAGS[name], "-c", source, "-o", objects[-1])
    library = directory / "kernels.so"
    _run(compiler, "-shared", *objects, "-o", str(library))
    return library


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False)  # noqa: S603
    if done.returncode:
        raise OSError(f"{command[0]} failed: {done.stderr.strip()[:500]}")
