"""Which audio a tar shard holds, found by its headers alone: one input a member, with what stands beside it.

WebDataset's convention: files whose names are the same up to the first dot of the base name belong together. `.txt`
becomes the column `text`, the keys of a `.json` object become columns, `.cls` becomes `label`; up to 16 MiB each. Names
inside an archive are never used as paths.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn

import pyarrow as pa

from pipelines import storage
from pipelines.datasets.listing import SourceFile, listing_of, with_extra
from pipelines.datasets.travelling_columns import table_of
from pipelines.inputs.range_stream import open_scattered
from tokenizer.errors import AudioError

COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_SIDECARS = (".txt", ".json", ".cls")
_LARGEST_SIDECAR = 16 * 2**20  # bytes; what is larger is no transcript


class _DamageError(Exception):
    """From this header on the archive cannot be read."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset


def is_tar(uri: str) -> bool:
    """Whether a file goes by the extension of tar shards."""
    return uri.lower().endswith(".tar")


def index_tar(name: str, file: storage.StoredFile, is_audio: Callable[[str], bool]) -> pa.Table:
    """List the audio in a shard; what is damaged becomes one more input, of the shard's own name.

    Args:
        name: id of the shard; those of its members begin with it.
        file: the shard.
        is_audio: tells by its name whether a member is audio.

    Returns:
        A listing with travelling columns, in the order of the shard.

    Raises:
        OSError: S3 fails.
    """
    inputs: list[SourceFile] = []
    keys: list[str | None] = []
    beside: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        with open_scattered(file.uri) as stream:
            for member in _members(stream, 0, file.size):
                path = member.name.removeprefix("./")
                if any(part.startswith(".") and part != ".." for part in path.split("/")):
                    continue
                if is_audio(path):
                    readable = member.isreg() and not member.issparse()
                    place = member.offset_data if readable else None  # None: found out, and said, when it is read
                    inputs.append(SourceFile(f"{name}/{path}", file.uri, member.size, path, place))
                    keys.append(_key(path)[0])
                elif member.isreg() and member.size <= _LARGEST_SIDECAR and _key(path)[1] in _SIDECARS:
                    key, ending = _key(path)
                    beside.setdefault(key, {})[ending] = _sidecar(stream, member, ending)
    except _DamageError as damage:
        inputs.append(SourceFile(name, file.uri, offset=damage.offset))
        keys.append(None)
    except OSError as error:
        if storage.is_s3(file.uri) and not isinstance(error, PermissionError):
            raise
        inputs.append(SourceFile(name, file.uri, offset=0))
        keys.append(None)
    records = [_joined(beside.get(key, {})) if key is not None else {} for key in keys]
    return with_extra(listing_of(inputs), table_of(records))


def raise_damage(file: SourceFile) -> NoReturn:
    """Say what is wrong with a shard that was listed as damaged.

    Raises:
        AudioError: always, with the reason.
        OSError: the shard cannot be opened.
    """
    with open_scattered(file.uri) as stream:
        size = stream.seek(0, 2)
        try:
            for _ in _members(stream, file.offset or 0, size):
                pass
        except _DamageError as damage:
            raise AudioError(f"{file.uri}: damaged at byte {damage.offset}: {damage}") from damage
    raise AudioError(f"{file.uri}: could not be read when it was listed, but now; make a new dataset to read it")


def _members(stream: BinaryIO, start: int, size: int) -> Iterator[tarfile.TarInfo]:
    """Members whose data are there, in order, also of archives that were put one behind the other.

    Raises:
        _DamageError: as soon as there is something else, or the end comes too early.
    """
    while True:
        position = start
        try:
            stream.seek(position)
            archive = tarfile.TarFile(fileobj=stream, mode="r", errors="surrogateescape")
            while (member := archive.next()) is not None:
                position = member.offset
                if member.size < 0 or archive.offset <= member.offset:
                    raise _DamageError(position, "a header with an impossible size")
                if member.isreg() and member.offset_data + member.size > size:
                    missing = member.offset_data + member.size - size
                    raise _DamageError(position, f"cut short: the last {missing} bytes of {member.name!r} are missing")
                archive.members.clear()  # type: ignore[attr-defined] # a shard may have millions
                yield member
                position = archive.offset
            position = archive.offset
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            raise _DamageError(position, _reason(stream, position, error)) from error
        following = _next_archive(stream, position, size)
        if following is None:
            return
        start = following


def _next_archive(stream: BinaryIO, position: int, size: int) -> int | None:
    """Where another archive begins behind the zeros that end one; None where only zeros follow."""
    stream.seek(position)
    block = stream.read(tarfile.BLOCKSIZE)
    if not block:
        raise _DamageError(position, "the mark at the end of an archive is missing: it may have been cut short")
    if any(block):
        raise _DamageError(position, "no tar header")
    while position < size:
        blocks = stream.read(tarfile.RECORDSIZE)
        if not blocks:
            break
        if any(blocks):
            first = next(index for index, byte in enumerate(blocks) if byte)
            return position + tarfile.BLOCKSIZE + first // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        position += len(blocks)
    return None


def _reason(stream: BinaryIO, position: int, error: Exception) -> str:
    stream.seek(position)
    begin = stream.read(4)
    if begin[:2] == b"\x1f\x8b" or begin[:3] in (b"BZh", b"\xfd7z") or begin == b"\x28\xb5\x2f\xfd":
        return "a compressed archive; only plain ones can be read by member"
    return str(error) or repr(error)


def _key(path: str) -> tuple[str, str]:
    """A path up to the first dot of its base name, and the rest in lower case."""
    folder, base = posixpath.split(path)
    stem, dot, ending = base.partition(".")
    return posixpath.join(folder, stem), (dot + ending).lower()


def _sidecar(stream: BinaryIO, member: tarfile.TarInfo, ending: str) -> dict[str, Any]:
    """The columns that a file beside the audio gives; one that says something else than it should travels as text."""
    stream.seek(member.offset_data)
    text = stream.read(member.size).decode("utf-8", "backslashreplace")
    if ending == ".txt":
        return {"text": text}
    if ending == ".cls":
        label = text.strip()
        return {"label": int(label) if label.isdecimal() and len(label) < 19 else label}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    return fields if isinstance(fields, dict) else {"json": text}


def _joined(sidecars: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The columns of all files of one key; a key of the .json that another file gives too is put aside, not lost."""
    columns = {**sidecars.get(".txt", {}), **sidecars.get(".cls", {})}
    taken = set(columns)
    return columns | {
        f"json_{name}" if name in taken else name: value for name, value in sidecars.get(".json", {}).items()
    }
