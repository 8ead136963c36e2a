"""What headers of WAV, AIFF, AU, MP3 and Ogg say about the length, where libsndfile does not tell or errs.

False alarms cost users good files, so every check allows what real writers do:

- WAV and AIFF: sizes of 0 and of about 2 or 4 GiB are those of pipes and of recorders that were cut off: unknown.
- MP3: without a Xing or Info frame, nothing is known. One that counts fewer bytes than there are, with more audio
  behind them, was left by a tool that joined files: it is ignored.
- Ogg: the specification wants a flag on the last page, but live recordings stop without it: not asked for. A last page
  that is not all there was cut, and a second stream behind the first would be left out.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from tokenizer.watched_stream import WatchedStream

_MAX_CHUNKS = 64  # before the data; real files have a handful
_UNKNOWN_FROM = 0x7F000000  # 0xFFFFFFFF by FFmpeg, 0x7FFFF000 by SoX, 0x80000000 by arecord
_OGG_PAGE = 27 + 255 + 255 * 255  # bytes, the longest
_ID3_HEADER = 10


@dataclass(frozen=True, slots=True)
class DataChunk:
    """Where the samples of a WAV, AIFF or AU begin, and what the header says they take."""

    offset: int
    declared: int | None  # bytes; None where the header leaves it open
    size_at: int  # where in the file the size stands
    unclosed: bool  # a WAV whose writer never came back to fill in the sizes


@dataclass(frozen=True, slots=True)
class Mp3Header:
    """What the first frame of an MP3 tells."""

    counts: bool  # whether it counts the frames, and is believed
    tag_at: int | None  # where its tag stands


def read_data_chunk(watched: WatchedStream) -> DataChunk | None:
    """The data chunk of a WAV (RIFF, RIFX, RF64), AIFF or AU; None for other files and where there is none."""
    head = _read_at(watched, 0, 24)
    kind, form = head[:4], head[8:12]
    if kind == b".snd" and len(head) == 24:
        offset, declared = struct.unpack(">II", head[4:12])
        return DataChunk(offset, declared if declared < _UNKNOWN_FROM else None, 8, unclosed=False)
    if kind == b"FORM" and form in (b"AIFF", b"AIFC"):
        return _find_chunk(watched, b"SSND", ">")
    if kind in (b"RIFF", b"RIFX", b"RF64") and form == b"WAVE":
        return _find_chunk(watched, b"data", ">" if kind == b"RIFX" else "<")
    return None


def _find_chunk(watched: WatchedStream, wanted: bytes, order: str) -> DataChunk | None:
    form_size = int(struct.unpack(f"{order}I", _read_at(watched, 4, 4))[0])
    position, long_size = 12, None
    for _ in range(_MAX_CHUNKS):
        header = _read_at(watched, position, 24)
        if len(header) < 8:
            break
        name, size = header[:4], int(struct.unpack(f"{order}I", header[4:8])[0])
        if name == b"ds64" and len(header) == 24:  # of RF64: the size of the file, then that of the data
            long_size = int(struct.unpack("<Q", header[16:24])[0])
        if name == wanted:
            unclosed = wanted == b"data" and size == 0 and not 8 <= form_size - position < _UNKNOWN_FROM
            if long_size is not None and size == 2**32 - 1:
                declared = long_size if 0 < long_size < 2**62 else None
            else:
                declared = size if 0 < size < _UNKNOWN_FROM else None
            return DataChunk(position + 8, declared, position + 4, unclosed)
        position += 8 + size + size % 2
    return None


def read_mp3_header(watched: WatchedStream, size: int) -> Mp3Header | None:
    """What the first frame says, behind an ID3 tag if there is one; None where no MPEG audio frame stands there."""
    start = skip_id3(watched)
    frame = _read_at(watched, start, 192)
    if not _is_frame(frame):
        return None
    found = max(frame.find(b"Xing", 4, 64), frame.find(b"Info", 4, 64))
    if found < 0 or len(frame) < found + 16:
        return Mp3Header(counts=False, tag_at=None)
    flags, *counts = struct.unpack(">III", frame[found + 4 : found + 16])
    counts_frames, counts_bytes = bool(flags & 1), bool(flags & 2)
    if counts_frames and counts_bytes and start + counts[1] < size - 4:
        beyond = _read_at(watched, start + counts[1], 4)
        if beyond[:3] == b"ID3" or _is_frame(beyond):
            return Mp3Header(counts=False, tag_at=start + found)
    return Mp3Header(counts=counts_frames, tag_at=start + found)


def skip_id3(watched: WatchedStream) -> int:
    """Where the file goes on after an ID3v2 tag: 0 if it has none."""
    head = _read_at(watched, 0, _ID3_HEADER)
    if head[:3] != b"ID3" or len(head) < _ID3_HEADER:
        return 0
    length = 0
    for byte in head[6:]:
        length = length << 7 | byte & 0x7F
    return _ID3_HEADER + length


def ogg_fault(watched: WatchedStream, size: int) -> str | None:
    """What the last page of an Ogg file shows to be wrong with it, in words; None if nothing does."""
    first_serial = _read_at(watched, 0, 18)[14:]
    start = max(0, size - _OGG_PAGE)
    tail = _read_at(watched, start, size - start)
    last = tail.rfind(b"OggS\0")
    if last < 0:
        return None
    page = tail[last:]
    num_lacings = page[26] if len(page) > 26 else 255
    length = 27 + num_lacings + sum(page[27 : 27 + num_lacings])
    if len(page) < length:
        return f"damaged: ends inside an Ogg page, after {size} bytes"
    if page[14:18] != first_serial:
        return "several Ogg streams one after another (chained): only the first would be read, split the file"
    return None


def _is_frame(head: bytes) -> bool:
    """Whether bytes start as a frame of MPEG audio, layers 1 to 3, does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    return version != 1 and layer != 0 and head[2] >> 4 != 15 and head[2] >> 2 & 3 != 3


def _read_at(watched: WatchedStream, position: int, size: int) -> bytes:
    watched.seek(position, os.SEEK_SET)
    return watched.read(size)
