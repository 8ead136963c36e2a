"""A language model on its way to the workers of a job: its two files, from wherever it lies to wherever they run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from lm_head.integer_coder import IntegerCoder
from lm_head.lm_checkpoint import CONFIG_NAME, lm_directory, load_coder
from tokenizer import CheckpointError
from tokenizer.checkpoint_file import SAFETENSORS_NAME


@dataclass(frozen=True, slots=True)
class CarriedLM:
    """The files of a language model that `save_lm` wrote."""

    config: bytes
    weights: bytes

    @classmethod
    def read(cls, lm: str | Path) -> CarriedLM:
        """From a bundled name or a directory.

        Raises:
            CheckpointError: they cannot be read.
        """
        directory = lm_directory(lm)
        try:
            return cls((directory / CONFIG_NAME).read_bytes(), (directory / SAFETENSORS_NAME).read_bytes())
        except OSError as error:
            raise CheckpointError(f"{lm}: the language model cannot be read: {error}") from error

    def coder(self, device: str = "cpu") -> IntegerCoder:
        """The entropy coder, after the test that this machine computes it as all others do.

        Raises:
            CheckpointError: it does not, or the files are not those of a model in integers.
        """
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, CONFIG_NAME).write_bytes(self.config)
            Path(directory, SAFETENSORS_NAME).write_bytes(self.weights)
            return load_coder(directory, device)
