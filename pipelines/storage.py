"""Files by URI, on a local disk or in S3: list them, read them, and write one so that it appears whole or not at all.

A URI is an absolute local path or `s3://bucket/key`.
"""

from __future__ import annotations

import errno
import io
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from pipelines import s3_server
from tokenizer.errors import DatasetError

S3 = "s3://"
TEMPORARY = ".quantone-tmp-"
_ATTEMPTS = 3
_CONFLICT_PAUSE_S = (0.1, 1.0)  # S3 answers 409 to one of two conditional PUTs at the same moment
_WHOLE_BYTES = 64 * 2**20  # up to this size one GET of the whole object is cheaper than several of its ranges


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file as a listing shows it."""

    uri: str
    size: int  # bytes


class _NamedBytes(io.BytesIO):
    """Bytes in memory that know where they came from, for error messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def is_s3(location: str | Path) -> bool:
    """Whether a location is in S3 and not on a local disk."""
    return str(location).startswith(S3)


def absolute(location: str | Path) -> str:
    """The URI of a location: an absolute path, or an s3:// URI without a slash at its end.

    Raises:
        DatasetError: another scheme than s3://.
    """
    text = str(location)
    if is_s3(text):
        return text.rstrip("/")
    if "://" in text:
        raise DatasetError(f"{text}: only local paths and s3:// are supported")
    return os.path.abspath(text)  # noqa: PTH100 - a Path would drop nothing but symlinks, and those are to be kept


def join(root: str, *names: str) -> str:
    """A URI below another one."""
    return "/".join([root.rstrip("/"), *names])


def list_files(directory: str) -> list[StoredFile]:
    """All files below a directory, in any order; hidden ones (a name that starts with a dot) are left out."""
    if not is_s3(directory):
        return list(_walk(directory))
    with s3_server.explained(directory):
        found = s3_server.filesystem().find(directory, detail=True)
    prefix = len(directory) - len(S3) + 1
    return [
        StoredFile(S3 + key, entry["size"])
        for key, entry in found.items()
        if entry["type"] == "file" and not any(name.startswith(".") for name in key[prefix:].split("/"))
    ]


def glob_files(pattern: str) -> list[StoredFile]:
    """Files that match a pattern with *, ?, [..] or **, in any order."""
    if is_s3(pattern):
        with s3_server.explained(pattern):
            found = s3_server.filesystem().glob(pattern, detail=True)
        return [StoredFile(S3 + key, entry["size"]) for key, entry in found.items() if entry["type"] == "file"]
    import glob

    paths = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return [StoredFile(path, os.stat(path).st_size) for path in paths if os.path.isfile(path)]  # noqa: PTH113, PTH116


def find_file(uri: str) -> StoredFile | None:
    """The file at exactly this URI, or None: nothing there, or a directory."""
    try:
        if is_s3(uri):
            with s3_server.explained(uri):
                entry = s3_server.filesystem().info(uri)
            return StoredFile(uri, entry["size"]) if entry["type"] == "file" else None
        path = Path(uri)
        return StoredFile(uri, path.stat().st_size) if path.is_file() else None
    except FileNotFoundError:
        return None


def is_directory(uri: str) -> bool:
    """Whether there is a directory; in S3, whether any object has this prefix."""
    if not is_s3(uri):
        return Path(uri).is_dir()
    with s3_server.explained(uri):
        return bool(s3_server.filesystem().isdir(uri))


def list_names(directory: str) -> list[str]:
    """Names of the files directly in a directory, sorted; none where there is no directory."""
    if is_s3(directory):
        return sorted(file.uri.rpartition("/")[2] for file in list_files(directory))
    path = Path(directory)
    return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []


def open_input(uri: str, size: int | None = None) -> BinaryIO:
    """Open a file for reading, seekable; `size` in bytes saves S3 a request.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not is_s3(uri):
        return Path(uri).open("rb")
    with s3_server.explained(uri):
        if size is not None and size <= _WHOLE_BYTES:
            return _NamedBytes(s3_server.filesystem().cat_file(uri), uri)
        stream: BinaryIO = s3_server.filesystem().open(uri, "rb")
        return stream


def read_bytes(uri: str) -> bytes:
    """The whole content of a file.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not is_s3(uri):
        return Path(uri).read_bytes()
    with s3_server.explained(uri):
        content: bytes = s3_server.filesystem().cat_file(uri)
        return content


def commit(uri: str, content: bytes) -> None:
    """Write a file in one atomic step, over any older one of the name: a rename, or one PUT (or finished multipart).

    After the return a power cut does not undo it (local: both file and directory are synced).
    """
    if is_s3(uri):
        with s3_server.explained(uri):
            s3_server.filesystem().pipe_file(uri, content)
    else:
        _write_beside(Path(uri), content, lambda temporary, final: temporary.replace(final))


def create(uri: str, content: bytes) -> bool:
    """Write a file in one atomic step if there is none of the name; two that try at once do not both succeed.

    Returns:
        Whether the file now has this content, from here or from somebody who had written the same.
    """
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            _create_once(uri, content)
        except OSError as error:
            if s3_server.status_of(error) == HTTPStatus.CONFLICT and attempts_left:
                time.sleep(random.uniform(*_CONFLICT_PAUSE_S))  # noqa: S311 - two that try again should not meet again
                continue
            if not isinstance(error, FileExistsError) and s3_server.status_of(error) != HTTPStatus.PRECONDITION_FAILED:
                raise
            # Not yet lost: where S3's answer to our own first try went missing, the second try finds the file there.
            return read_bytes(uri) == content
        return True
    raise AssertionError  # the last round returns or raises


def _create_once(uri: str, content: bytes) -> None:
    if is_s3(uri):
        with s3_server.explained(uri):
            s3_server.filesystem().pipe_file(uri, content, mode="create")  # If-None-Match: *
    else:
        _write_beside(Path(uri), content, _link)


def _link(temporary: Path, final: Path) -> None:
    try:
        os.link(temporary, final)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # No hard links here (exFAT, many network mounts): of two that try at the same moment the last one's stays.
        if final.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
        temporary.replace(final)
    else:
        temporary.unlink()


def _write_beside(final: Path, content: bytes, move: Callable[[Path, Path], object]) -> None:
    """Write a temporary file and move it to its name; both are on disk afterwards."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for attempts_left in reversed(range(_ATTEMPTS)):
        temporary = final.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            move(temporary, final)
            break
        except FileNotFoundError:
            if attempts_left == 0:  # else another job, just starting, took the temporary file for a dead one's
                raise
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    directory = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove(uri: str) -> None:
    """Remove a file; nothing happens where there is none."""
    if is_s3(uri):
        if find_file(uri) is not None:
            s3_server.filesystem().rm_file(uri)
        return
    Path(uri).unlink(missing_ok=True)


def remove_temporaries(directory: str) -> None:
    """Remove what killed writers left directly in a directory; S3 never shows a half-written object."""
    if is_s3(directory):
        return
    for name in list_names(directory):
        if name.startswith(TEMPORARY):
            Path(directory, name).unlink(missing_ok=True)


def _walk(directory: str) -> Iterator[StoredFile]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.is_file():
                yield StoredFile(entry.path, entry.stat().st_size)
