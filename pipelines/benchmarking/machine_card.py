"""What machine figures were measured on: processor, cores, memory, versions and load, without its name."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "numpy", "polars", "pyarrow", "ray", "encodec", "transformers", "duckdb", "quantone")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineCard:
    """A machine, as a reader of figures wants to know it."""

    processor: str
    cores: int  # that this process may use
    memory_gib: float
    instructions: tuple[str, ...]
    system: str
    python: str
    packages: dict[str, str]
    load_before: float  # of one minute: runnable processes, when the run began
    load_after: float

    @property
    def slug(self) -> str:
        """For names of files."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.processor} {self.cores} cores".lower()).strip("-")

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> MachineCard:
        """From JSON types."""
        return cls(**{**plain, "instructions": tuple(plain["instructions"])})


def load_now() -> float:
    """Runnable processes, averaged over a minute; 0 where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


def describe_machine(load_before: float) -> MachineCard:
    """This machine now.

    Args:
        load_before: `load_now()` when the run began.
    """
    facts = _cpu_facts()
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return MachineCard(
        processor=facts.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=_memory_gib(),
        instructions=tuple(name for name in _INSTRUCTIONS if name in flags),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: version for name in _PACKAGES if (version := _version(name)) is not None},
        load_before=load_before,
        load_after=load_now(),
    )


def _cpu_facts() -> dict[str, str]:
    """Of the first processor."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_gib() -> float:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return 0.0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
