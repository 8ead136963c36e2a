"""Small archives of audio, or of what the listing takes for it, for tests."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq


def write_tar(path, contents, tar_format=tarfile.PAX_FORMAT):
    """A tar shard with these members, as (name, bytes) pairs or a dict."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = contents.items() if isinstance(contents, dict) else contents
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_audio_parquet(path, contents, columns=None, paths=None, **options):
    """A Parquet file as Hugging Face's `datasets` writes it, one row for each of `contents` (bytes or None)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    paths = paths or [None] * len(contents)
    audio = [{"bytes": content, "path": name} for content, name in zip(contents, paths, strict=True)]
    table = pa.table({"audio": pa.array(audio, kind), **(columns or {})})
    pq.write_table(table, path, write_page_checksum=True, **options)
    return path
