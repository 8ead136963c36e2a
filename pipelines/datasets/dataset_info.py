"""dataset.json: what a token dataset says about itself, and what makes two runs the same job."""

from __future__ import annotations

import dataclasses
import datetime
import json
import zlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines import storage
from tokenizer.errors import DatasetError

FORMAT_VERSION = 1
FILE_NAME = "dataset.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """The content of dataset.json; the same JSON stands in every part, so that one part alone can be decoded."""

    codec: dict[str, Any]  # Codec.card() and "source", the name or directory that load_codec takes
    bandwidth_kbps: float
    num_codebooks: int  # levels stored
    resampler: str
    plan_sha256: str
    precision: str = "float32"  # or "bfloat16" for all that is "fast": codes differ, `agreement` says how many and why
    agreement: dict[str, Any] | None = None  # with float32 codes, of the bundled speech; None: the same codes
    created_at: str = ""  # UTC, ISO 8601
    software_version: str = ""
    # The model whose streams the column codes_qtn has: name, identity, source; None: no such column
    lm: dict[str, Any] | None = None
    max_segment_s: float | None = None  # longer inputs are cut, at silence where there is some; None: none are
    quality: bool = False  # whether rows say how close their decoded audio is
    format: int = FORMAT_VERSION

    @property
    def sample_rate(self) -> int:
        """Hz of the codec."""
        return int(self.codec["spec"]["sample_rate"])

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return int(self.codec["spec"]["hop_length"])

    @property
    def codebook_size(self) -> int:
        """Rows of a codebook."""
        return int(self.codec["spec"]["codebook_size"])

    def to_json(self) -> str:
        """Stable JSON text, with a checksum of all the rest."""
        plain = dataclasses.asdict(self)
        return json.dumps(plain | {"crc32": _checksum(plain)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> DatasetInfo:
        """Parse what `to_json` wrote.

        Raises:
            DatasetError: not that, or of another format version.
        """
        try:
            plain = json.loads(text)
            crc32 = plain.pop("crc32", None)
            if crc32 is not None and crc32 != _checksum(plain):
                raise DatasetError(f"{FILE_NAME} is damaged: not what was written (if you changed it, remove crc32)")
            if plain["format"] != FORMAT_VERSION:
                raise DatasetError(f"dataset format {plain['format']!r}; this version reads {FORMAT_VERSION}")
            info = cls(**plain)
            _ = info.sample_rate, info.hop_length, info.codebook_size
            _ = info.lm is None or (info.lm["name"], info.lm["identity"], info.lm["source"])
        except (ValueError, TypeError, KeyError) as error:
            raise DatasetError(f"{FILE_NAME} is damaged: {type(error).__name__}: {error}") from error
        return info

    def describe_difference(self, other: DatasetInfo) -> str | None:
        """What would make codes of the two incomparable, in words; None where nothing does."""
        ours, theirs = self._identity(), other._identity()
        differences = [f"{key}: {ours[key]} there, {theirs[key]} asked for" for key in ours if ours[key] != theirs[key]]
        return "; ".join(differences) or None

    def _identity(self) -> dict[str, str]:
        return {
            "codec": f"{self.codec['name']} ({str(self.codec['sha256'])[:12]})",
            "bandwidth": f"{self.bandwidth_kbps:g} kbps ({self.num_codebooks} codebooks)",
            "precision": self.precision,
            "compressed by": "nothing" if self.lm is None else f"{self.lm['name']} ({str(self.lm['identity'])[:8]})",
            "resampler": self.resampler,
            "segments": "none" if self.max_segment_s is None else f"of at most {self.max_segment_s:g} s",
            "quality": "measured" if self.quality else "not measured",
        }


def read_dataset_info(dataset: str | Path) -> DatasetInfo:
    """Read a dataset's dataset.json.

    Raises:
        DatasetError: there is none, or it is damaged.
    """
    root = storage.absolute(dataset)
    try:
        content = storage.read_bytes(storage.join(root, FILE_NAME))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"{dataset}: not a token dataset, there is no {FILE_NAME} in it") from error
    except OSError as error:
        raise DatasetError(f"{dataset}: {FILE_NAME} cannot be read: {error}") from error
    try:
        return DatasetInfo.from_json(content)
    except DatasetError as error:
        raise DatasetError(f"{dataset}: {error}") from error


def write_dataset_info(dataset: str, info: DatasetInfo) -> DatasetInfo:
    """Commit dataset.json, stamped with the time and the version of this software; returns what was written."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    info = dataclasses.replace(info, created_at=now, software_version=_software_version())
    storage.commit(storage.join(dataset, FILE_NAME), info.to_json().encode())
    return info


def _checksum(plain: dict[str, Any]) -> str:
    """Of the values, however the text was laid out."""
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def _software_version() -> str:
    try:
        return metadata.version("quantone")
    except metadata.PackageNotFoundError:
        return "not installed"  # run from a checkout
