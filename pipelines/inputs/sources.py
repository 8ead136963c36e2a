"""What a SOURCE holds: the inputs of a directory, a glob or a single file, with stable ids, in one fixed order."""

from __future__ import annotations

import glob
import posixpath
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from pipelines import storage
from pipelines.datasets.dataset_info import FILE_NAME
from pipelines.datasets.listing import SourceFile, join_listings, listing_from
from pipelines.inputs.manifest import is_manifest, read_manifest
from pipelines.inputs.parquet_audio import holds_audio, index_parquet, is_parquet
from pipelines.inputs.tar_index import COMPRESSED_ENDINGS, index_tar, is_tar
from tokenizer.errors import DatasetError

__all__ = ["AUDIO_EXTENSIONS", "SourceFile", "is_audio", "list_source"]

# Containers with video are listed too: their sound is read with the extra audio-extra, and without it each becomes an
# error row that says so. A recording must not be left out because of how it is wrapped.
AUDIO_EXTENSIONS = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64"),
    *(".m4a", ".mp4", ".aac", ".webm", ".mkv", ".mov", ".wma", ".amr"),
)
_ARCHIVES_AT_ONCE = 8  # whose headers are read; mostly waiting for S3 or a network disk


def list_source(source: str | Path) -> pa.Table:
    """Inputs of a source, sorted by id: the columns of `SourceFile`, then those that travel into the dataset.

    Directories are searched to any depth for audio files, tar shards and Parquet files with audio. Files and
    directories whose names start with a dot are skipped, and so are names with other extensions. A name that is not
    valid UTF-8 is listed with its odd bytes escaped: reading it will fail, and the failure ends as an error row instead
    of in a dead job. A shard or Parquet file that is damaged is listed as an input that cannot be read.

    Args:
        source: a directory, a file or a pattern with *, ?, [..] or **; local or s3://. A single file may be a manifest
            (`read_manifest`).

    Raises:
        DatasetError: there is nothing of that name or no audio in it, a manifest that cannot be read, compressed tar
            archives, or a token dataset.
    """
    uri = storage.absolute(source)
    base, found = _find(uri)
    alone = len(found) == 1 and found[0].uri == uri
    if alone and is_manifest(uri) and not (is_parquet(uri) and holds_audio(uri)):
        return join_listings([read_manifest(uri)])
    packed = [file.uri for file in found if file.uri.lower().endswith(COMPRESSED_ENDINGS)]
    if packed:
        raise DatasetError(f"{packed[0]}: a compressed archive cannot be read by member; unpack it to a plain .tar")
    plain = [file for file in found if is_audio(file.uri)]
    archives = [file for file in found if is_tar(file.uri) or is_parquet(file.uri)]
    listings = [_plain_files(base, plain)] if plain else []
    with ThreadPoolExecutor(_ARCHIVES_AT_ONCE) as pool:
        indexed = pool.map(lambda file: _index(_utf8(file.uri)[len(_utf8(base)) :], file, alone=alone), archives)
        listings += [listing for listing in indexed if listing is not None]
    if not any(listing.num_rows for listing in listings):
        raise DatasetError(_nothing(source, archives))
    return join_listings(listings)


def is_audio(name: str) -> bool:
    """Whether a name has an extension that audio goes by."""
    return posixpath.splitext(name)[1].lower() in AUDIO_EXTENSIONS


def _index(name: str, file: storage.StoredFile, *, alone: bool) -> pa.Table | None:
    return index_tar(name, file, is_audio) if is_tar(file.uri) else index_parquet(name, file, alone=alone)


def _nothing(source: str | Path, archives: list[storage.StoredFile]) -> str:
    if archives:
        return f"{source}: no audio in {len(archives)} tar and Parquet files (Parquet: a column audio with bytes)"
    return f"{source}: no audio files; looked for {', '.join((*AUDIO_EXTENSIONS, '.tar', '.parquet'))}"


def _find(uri: str) -> tuple[str, list[storage.StoredFile]]:
    """The prefix that ids leave out, and the files."""
    single = storage.find_file(uri)
    if single is not None:
        return uri[: uri.rindex("/") + 1], [single]
    if storage.is_directory(uri):
        if all(storage.find_file(storage.join(uri, name)) is not None for name in (FILE_NAME, "plan.parquet")):
            raise DatasetError(f"{uri}: a token dataset, not audio; `quantone decode` turns it into audio files")
        return uri.rstrip("/") + "/", storage.list_files(uri)
    if glob.has_magic(uri):
        parents = uri.split("/")
        fixed = next(index for index, name in enumerate(parents) if glob.has_magic(name))
        return "/".join(parents[:fixed]) + "/", storage.glob_files(uri)
    raise DatasetError(f"{uri}: no such file or directory")


def _plain_files(base: str, files: list[storage.StoredFile]) -> pa.Table:
    uris = [_utf8(file.uri) for file in files]
    start = len(_utf8(base))
    return listing_from(
        {
            "id": pa.array([uri[start:] for uri in uris], pa.string()),
            "uri": pa.array(uris, pa.string()),
            "size": pa.array([file.size for file in files], pa.int64()),
        }
    )


def _utf8(name: str) -> str:
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode("utf-8")
