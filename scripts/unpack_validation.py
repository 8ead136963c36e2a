"""Unpacks the clips of a manifest with tar shards into files: a folder to listen to, and to evaluate a codec on.

Usage:
    python scripts/unpack_validation.py MANIFEST OUT_DIR [--split valid] [--kind speech]

MANIFEST is a .jsonl file; each line names a clip by `shard` (a tar file beside the manifest), `offset` and `bytes`
(where its audio lies there), `member` (its path, kept below OUT_DIR), `split` and `kind`. Files that are there already
in their full size stay as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path, PurePosixPath
from typing import Any


def read_manifest(manifest: Path, split: str, kind: str | None) -> list[dict[str, Any]]:
    """Clips of one split, and of one kind where it is given; in the order of the manifest."""
    lines = manifest.read_text(encoding="utf-8").splitlines()
    clips: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    return [clip for clip in clips if clip["split"] == split and kind in (None, clip["kind"])]


def unpack(clip: dict[str, Any], shards: Path, out_dir: Path) -> int:
    """Copy one clip out of its shard; returns its bytes.

    Raises:
        ValueError: the clip would land outside `out_dir`, or the shard ends before the clip does.
    """
    member = PurePosixPath(clip["member"])
    if member.is_absolute() or ".." in member.parts:
        raise ValueError(f"{clip['member']}: leads out of the folder")
    path = out_dir / member
    size = int(clip["bytes"])
    if path.is_file() and path.stat().st_size == size:
        return size
    with (shards / clip["shard"]).open("rb") as shard:
        shard.seek(int(clip["offset"]))
        content = shard.read(size)
    if len(content) != size:
        raise ValueError(f"{clip['shard']}: ends inside {clip['member']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return size


def main() -> None:
    """Unpack, and say how much it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--split", default="valid", help="which split (valid)")
    parser.add_argument("--kind", default=None, help="speech, music or sound; all if left out")
    arguments = parser.parse_args()
    try:
        clips = read_manifest(arguments.manifest, arguments.split, arguments.kind)
        num_bytes = sum(unpack(clip, arguments.manifest.parent, arguments.out_dir) for clip in clips)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{arguments.manifest}: {type(error).__name__}: {error}")
    if not clips:
        sys.exit(f"{arguments.manifest}: no clips with split {arguments.split!r} and kind {arguments.kind!r}")
    print(f"{len(clips)} clips, {num_bytes / 1e6:.1f} MB in {arguments.out_dir}")


if __name__ == "__main__":
    main()
