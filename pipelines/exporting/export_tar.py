"""Sequences as WebDataset tar: for each one `<key>.npy` with the ids and `<key>.json` with the id of the utterance."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np

from pipelines.exporting.export_shards import ExportedSequence


class TarShard:
    """A tar that grows in memory; no time, owner or machine is in it, so the same sequences give the same bytes.

    Keys are running numbers: WebDataset ends a key at its first dot, and ids of utterances have dots and folders.
    """

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, sequence: ExportedSequence) -> None:
        """Take a sequence."""
        key, array = f"{sequence.number:012d}", io.BytesIO()
        np.lib.format.write_array(array, sequence.ids, version=(1, 0), allow_pickle=False)
        facts = {"id": sequence.id, "shape": list(sequence.ids.shape)}
        self._add_member(f"{key}.npy", array.getvalue())
        self._add_member(f"{key}.json", json.dumps(facts, sort_keys=True).encode())

    def content(self) -> bytes:
        """The bytes of the finished file."""
        self._tar.close()
        return self._buffer.getvalue()

    def _add_member(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # mtime, uid and gid are 0
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
