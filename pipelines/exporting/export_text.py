"""Text as ids: a Hugging Face `tokenizers` file (tokenizer.json), read as it is."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from pipelines import storage
from tokenizer import DatasetError


class TextTokenizer:
    """Turns text into ids, all of it: what a tokenizer.json says of truncation, padding and special tokens is left out.

    Args:
        location: of the tokenizer.json, local or s3://.

    Raises:
        DatasetError: it cannot be read.
        ImportError: the package `tokenizers` is not installed.
    """

    def __init__(self, location: str) -> None:
        try:
            self._content = storage.read_bytes(storage.absolute(location))
        except OSError as error:
            raise DatasetError(f"{location}: cannot be read: {error}") from error
        self.location = location
        _ = self._tokenizer

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self._content).hexdigest()

    @functools.cached_property
    def size(self) -> int:
        """All ids are below it."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def __getstate__(self) -> dict[str, Any]:
        """The file alone, so that other processes can have it too."""
        return {"location": self.location, "_content": self._content}

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError("text needs the package tokenizers: pip install 'quantone[export]'") from error
        try:
            tokenizer = Tokenizer.from_buffer(self._content)
        except Exception as error:  # the package raises Exception itself
            raise DatasetError(f"{self.location}: not a tokenizer.json: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
