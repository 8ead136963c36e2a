"""What a SOURCE holds: the audio files of a directory, a glob or a single file, with stable ids, in one fixed order."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines import storage
from tokenizer.errors import DatasetError

AUDIO_EXTENSIONS = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input of a corpus job."""

    id: str  # path below SOURCE, with forward slashes
    uri: str
    size: int  # bytes


def list_source(source: str | Path) -> list[SourceFile]:
    """Audio files of a source, sorted by id.

    Directories are searched to any depth. Files and directories whose names start with a dot are skipped, and so
    are names without one of `AUDIO_EXTENSIONS`. A name that is not valid UTF-8 is listed with its odd bytes escaped:
    reading it will fail, and the failure ends as an error row instead of in a dead job.

    Args:
        source: a directory, a file or a pattern with *, ?, [..] or **; local or s3://.

    Raises:
        DatasetError: there is nothing of that name, or no audio file in it.
    """
    uri = storage.absolute(source)
    base, found = _find(uri)
    audio = [file for file in found if PurePosixPath(file.uri).suffix.lower() in AUDIO_EXTENSIONS]
    if not audio:
        raise DatasetError(f"{source}: no audio files; looked for {', '.join(AUDIO_EXTENSIONS)}")
    listed = (SourceFile(_utf8(file.uri[len(base) :]), _utf8(file.uri), file.size) for file in audio)
    return sorted(listed, key=lambda file: file.id)


def _find(uri: str) -> tuple[str, list[storage.StoredFile]]:
    """The prefix that ids leave out, and the files."""
    single = storage.find_file(uri)
    if single is not None:
        return uri[: uri.rindex("/") + 1], [single]
    if storage.is_directory(uri):
        return uri.rstrip("/") + "/", storage.list_files(uri)
    if glob.has_magic(uri):
        parents = uri.split("/")
        fixed = next(index for index, name in enumerate(parents) if glob.has_magic(name))
        return "/".join(parents[:fixed]) + "/", storage.glob_files(uri)
    raise DatasetError(f"{uri}: no such file or directory")


def _utf8(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
