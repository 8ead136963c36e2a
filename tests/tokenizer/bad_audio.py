"""Bad audio files: all that a corpus may hold and a decoder may choke on, and mutations of any file."""

import io
import random
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from tests.conftest import speech_like

RATE = 24000


@dataclass(frozen=True)
class BadFile:
    """One file, and what may come of it: "tokens", "error" (a typed one) or "either"."""

    name: str
    path: Path
    allowed: str


def bad_audio_files(folder, *, long_hours=10.0):
    """All cases, written into a folder. The long one is a hole in a sparse file: it takes no space.

    Those that need PyAV to make are left out where it is not installed.
    """
    speech = speech_like(0.5, RATE)
    cases = {**_damaged(speech), **_strange_samples(speech), **_strange_formats(speech), **_videos(speech)}
    files = []
    for name, (content, allowed) in cases.items():
        path = Path(folder, name.replace(" ", "_"))
        path.write_bytes(content)
        files.append(BadFile(name, path, allowed))
    long_wav = Path(folder, "hours.wav")
    write_silence(long_wav, long_hours * 3600, 8000)
    return [*files, BadFile("hours.wav", long_wav, "tokens")]


def encoded_formats():
    """Half a second of sound in every format, as bytes; those that need PyAV only where it is installed."""
    speech = speech_like(0.5, RATE)
    formats = {
        "wav": sound(speech, "WAV", "PCM_16"),
        "flac": sound(speech, "FLAC", "PCM_16"),
        "mp3": sound(speech, "MP3", "MPEG_LAYER_III"),
        "ogg": sound(speech, "OGG", "VORBIS"),
        "opus": sound(speech, "OGG", "OPUS"),
    }
    if _has_av():
        formats |= {
            "m4a": av_sound(speech, "ipod", "aac"),
            "webm": av_sound(speech, "webm", "libopus"),
            "aac": av_sound(speech, "adts", "aac"),
        }
    return formats


def mutated(content, seed):
    """A file after some accident: bits flipped, cut, a piece lost, doubled, or overwritten."""
    rng = random.Random(seed)  # noqa: S311 - a seeded generator is the point
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1) if rng.random() < 0.5 else rng.randrange(min(100, len(changed)) + 1)
        piece = slice(start, start + rng.choice([1, 2, 4, 64, 1000]))
        accident = rng.choice(["flip", "flip", "cut", "lose", "double", "noise", "ones", "zeros"])
        if accident == "flip":
            for position in rng.choices(range(len(changed)), k=rng.choice([1, 3, 20])) if changed else ():
                changed[position] ^= 1 << rng.randrange(8)
        elif accident == "cut":
            del changed[start:]
        elif accident == "lose":
            del changed[piece]
        elif accident == "double":
            changed[start:start] = changed[piece]
        else:
            length = len(changed[piece])
            changed[piece] = {"ones": b"\xff" * length, "zeros": bytes(length)}.get(accident) or rng.randbytes(length)
    return bytes(changed)


def sound(samples, file_format, subtype, rate=RATE):
    """Samples [S] or [S, C] as a file of a format that libsndfile writes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=file_format, subtype=subtype)
    return buffer.getvalue()


def av_sound(samples, container, codec, *, num_audio=1, video=False, rate=RATE, options=None):
    """Samples [S] as the audio of a container that PyAV writes; each further stream is half as loud."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options or {}) as output:
        picture = output.add_stream("mpeg4", rate=25) if video else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        options = {"bit_rate": 12200} if "amrnb" in codec else {}
        streams = [output.add_stream(codec, rate=rate, layout="mono", **options) for _ in range(num_audio)]
        for number in range(12 if picture is not None else 0):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * number, np.uint8), format="rgb24")
            output.mux(picture.encode(frame))
        for number, stream in enumerate(streams):
            pcm = np.rint(samples * 32767 / 2**number).astype(np.int16)
            for start in range(0, len(pcm), 960):
                frame = av.AudioFrame.from_ndarray(pcm[None, start : start + 960], format="s16", layout="mono")
                frame.sample_rate, frame.pts = rate, start
                output.mux(stream.encode(frame))
        for stream in [*streams, *([picture] if picture is not None else [])]:
            output.mux(stream.encode(None))
    return buffer.getvalue()


def write_silence(path, seconds, rate):
    """A 16-bit mono WAV of digital silence, as a sparse file."""
    num_bytes = 2 * round(seconds * rate)
    header = sound(np.zeros(0), "WAV", "PCM_16", rate)[:44]
    header = header[:4] + struct.pack("<I", num_bytes + 36) + header[8:40] + struct.pack("<I", num_bytes)
    with Path(path).open("wb") as file:
        file.write(header)
        file.truncate(44 + num_bytes)


def patched(content, offset, value):
    """A file with some bytes replaced."""
    return content[:offset] + value + content[offset + len(value) :]


def flac_that_claims(content, num_samples):
    """A FLAC whose STREAMINFO says another number of samples (36 bits from the middle of byte 21)."""
    first = bytes([content[21] & 0xF0 | num_samples >> 32])
    return patched(content, 21, first + struct.pack(">I", num_samples & 0xFFFFFFFF))


def with_id3(content, num_bytes):
    """A file behind an ID3v2 tag of so many bytes, as large cover pictures make them."""
    length = bytes(num_bytes >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + length + bytes(num_bytes) + content


def _damaged(speech):
    wav, flac = sound(speech, "WAV", "PCM_16"), sound(speech, "FLAC", "PCM_16")
    mp3, ogg = sound(speech, "MP3", "MPEG_LAYER_III"), sound(speech, "OGG", "VORBIS")
    return {
        "empty.wav": (b"", "error"),
        "header only.wav": (wav[:44], "error"),
        "no samples.wav": (sound(speech[:0], "WAV", "PCM_16"), "error"),
        "html.wav": (b"<!doctype html><title>404</title>" * 30, "error"),
        "truncated.wav": (wav[: len(wav) // 2], "error"),
        "truncated.flac": (flac[: len(flac) // 2], "error"),
        "truncated.mp3": (with_id3(mp3, 100)[: len(mp3) // 3], "error"),
        "truncated.ogg": (ogg[: len(ogg) * 2 // 3], "error"),
        "claims 4 GiB.wav": (patched(wav, 40, b"\xff\xff\xff\xff"), "tokens"),
        "claims nothing.wav": (patched(patched(wav, 40, bytes(4)), 4, bytes(4)), "tokens"),
        "claims 2 to the 36.flac": (flac_that_claims(flac, 2**36 - 1), "error"),
        "claims nothing.flac": (flac_that_claims(flac, 0), "tokens"),
        "wrong extension.wav": (mp3, "tokens"),
        "huge id3.mp3": (with_id3(mp3, 20_000_000), "tokens"),
        "endless id3.mp3": (with_id3(mp3, 0)[:6] + b"\x7f\x7f\x7f\x7f" + mp3, "error"),
    }


def _strange_samples(speech):
    samples = {
        "one sample": (speech[:1], "tokens"),
        "under a frame": (speech[:5], "tokens"),
        "nan": (np.append(speech, np.nan), "error"),
        "infinite": (np.append(speech, -np.inf), "error"),
        "1e30": (speech * 1e30, "either"),
        "denormal": (speech * 1e-41, "tokens"),
        "dc": (np.full(9600, 0.7), "tokens"),
        "silence": (np.zeros(9600), "tokens"),
        "square": (np.sign(np.sin(np.arange(9600) / 9)), "tokens"),
    }
    return {f"{name}.wav": (sound(value, "WAV", "FLOAT"), allowed) for name, (value, allowed) in samples.items()}


def _strange_formats(speech):
    wav = sound(speech, "WAV", "PCM_16")
    rates = {8000: "tokens", 11025: "tokens", 44100: "tokens", 192_000: "tokens"}
    lying_rates = {0: "error", 1: "error", 44101: "tokens", 2**31 - 1: "error"}
    return {
        "8 channels.wav": (sound(np.tile(speech[:, None], 8), "WAV", "PCM_16"), "tokens"),
        "1024 channels.wav": (sound(np.zeros((100, 1024)), "WAV", "PCM_16"), "error"),
        "24 bit.wav": (sound(speech, "WAV", "PCM_24"), "tokens"),
        "float64.wav": (sound(speech, "WAV", "DOUBLE"), "tokens"),
        "mulaw.wav": (sound(speech, "WAV", "ULAW"), "tokens"),
        **{f"{rate} hz.wav": (sound(speech, "WAV", "PCM_16", rate), allowed) for rate, allowed in rates.items()},
        **{
            f"{rate} hz.wav": (patched(wav, 24, struct.pack("<I", rate)), allowed)
            for rate, allowed in lying_rates.items()
        },
    }


def _videos(speech):
    if not _has_av():
        return {}
    mp4 = av_sound(speech, "mp4", "aac", video=True)
    return {
        "video.mp4": (mp4, "tokens"),
        "truncated.mp4": (mp4[: len(mp4) // 2], "error"),
        "claims 60 million packets.mp4": (_mp4_that_claims(speech, 60_000_000), "error"),
        "video without audio.mp4": (av_sound(speech, "mp4", "aac", num_audio=0, video=True), "error"),
        "two audio streams.mkv": (av_sound(speech, "matroska", "aac", num_audio=2), "tokens"),
    }


def _mp4_that_claims(speech, count):
    """An MP4 whose tables speak of so many packets of one byte, in one chunk."""
    content = av_sound(speech, "ipod", "aac")
    number = struct.pack(">I", count)
    for table, offset, value in ((b"stsz", 8, b"\0\0\0\1" + number), (b"stts", 12, number), (b"stsc", 16, number)):
        content = patched(content, content.find(table) + offset, value)
    return content


def _has_av():
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True
