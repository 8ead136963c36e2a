"""The first frame of an MP3 whose length is known before its sound: with it, players give exactly those samples.

An MP3 begins with sound that its encoder made up, and ends with more of it. How much says a frame at the front that
holds no sound. Encoders write it last, when they know how many frames there were; a stream needs it first. The number
of frames follows from the number of samples, so it can be written first.

Source: the LAME tag, http://gabriel.mp3-tech.org/mp3infotag.html; the padding as in LAME 3.100, `lame_encode_flush`.
"""

from __future__ import annotations

import struct

DELAY = 576  # samples that LAME puts in front
_MIN_PADDING = 576  # and the least that it puts behind
_FRAME_COUNT_ONLY = 1
_TAG_BYTES = 48  # "Xing", flags, frames, and 36 bytes of LAME's own


def with_length(frame: bytes, num_samples: int) -> bytes:
    """An empty first frame as the encoder leaves it, with the length of the stream in it.

    Args:
        frame: a header of MPEG audio, layer III, and zeros.
        num_samples: of each channel.
    """
    is_mpeg1 = frame[1] >> 3 & 3 == 3
    is_mono = frame[3] >> 6 == 3
    side_info = (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)
    num_frames, padding = _frames_and_padding(num_samples, 1152 if is_mpeg1 else 576)
    tag = b"Xing" + struct.pack(">II", _FRAME_COUNT_ONLY, num_frames) + b"LAME3.100".ljust(21, b"\0")
    tag += (DELAY << 12 | padding).to_bytes(3, "big")
    start = 4 + side_info
    return frame[:start] + tag.ljust(_TAG_BYTES, b"\0") + frame[start + _TAG_BYTES :]


def _frames_and_padding(num_samples: int, frame_samples: int) -> tuple[int, int]:
    """Frames of a stream behind its first one, and the samples at its end that are none of the sound's."""
    padding = -(DELAY + num_samples) % frame_samples or frame_samples
    if padding < _MIN_PADDING:
        padding += frame_samples
    return (DELAY + num_samples + padding) // frame_samples, padding
