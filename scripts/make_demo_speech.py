"""Renders the bundled demo speech from clips.jsonl with flite and espeak-ng.

Usage:
    apt-get install flite espeak-ng opus-tools
    python scripts/make_demo_speech.py [FOLDER]     (default: pipelines/demo_speech)

Each line of FOLDER/clips.jsonl names a clip: `id` is its path, whose ending picks the format (.flac at the voice's own
sample rate, .opus at 48 kHz), `voice` the program and its voice, `text` what is said. " | " in voice and text makes a
stereo dialogue: the left speaker first, then the right one. The same programs give the same bytes on every run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "pipelines" / "demo_speech"
OPUS_KBPS = 40  # per stream; what remains audible is the synthesizer, not the Opus coder
OPUS_RATE = 48_000  # Hz
MAX_TOTAL_BYTES = 2_000_000
WORDS_PER_MINUTE = 165  # espeak-ng's own 175 is hurried for sentences this short
AMPLITUDE = 75  # of espeak-ng; at its own 100 some voices clip
GAP_S = 0.15  # between the two speakers of a dialogue


def speak(voice: str, text: str, scratch: Path) -> tuple[np.ndarray, int]:
    """Say one sentence.

    Args:
        voice: "flite NAME" or "espeak-ng NAME[+VARIANT]".
        text: the sentence, in the voice's language.
        scratch: a folder for the intermediate wav.

    Returns:
        [S] int16 samples and their sample rate.
    """
    program, name = voice.split(" ", 1)
    wav = scratch / "sentence.wav"
    if program == "flite":
        command = ["flite", "-voice", name, "-t", text, "-o", str(wav)]
    elif program == "espeak-ng":
        command = ["espeak-ng", "-v", name, "-s", str(WORDS_PER_MINUTE), "-a", str(AMPLITUDE), "-w", str(wav), text]
    else:
        raise ValueError(f"voice {voice!r} must begin with 'flite' or 'espeak-ng'")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    samples, sample_rate = soundfile.read(wav, dtype="int16")
    return samples, sample_rate


def render(voice: str, text: str, scratch: Path) -> tuple[np.ndarray, int]:
    """Say a sentence, or a two-speaker dialogue in stereo; [S, C] int16 and the sample rate."""
    parts = [speak(*pair, scratch) for pair in zip(voice.split(" | "), text.split(" | "), strict=True)]
    sample_rate = parts[0][1]
    if len(parts) == 1:
        return parts[0][0][:, None], sample_rate
    (left, _), (right, right_rate) = parts
    if right_rate != sample_rate:
        raise ValueError(f"{voice!r}: the two voices have different sample rates")
    gap = round(GAP_S * sample_rate)
    stereo = np.zeros((len(left) + gap + len(right), 2), dtype=np.int16)
    stereo[: len(left), 0] = left
    stereo[len(left) + gap :, 1] = right
    return stereo, sample_rate


def upsample(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Bring [S, C] int16 up to Opus's 48 kHz by padding the spectrum with zeros: exact for a clip held as a whole."""
    num_samples = -(-len(samples) * OPUS_RATE // sample_rate)
    spectrum = np.fft.rfft(samples.astype(np.float64), axis=0)
    upsampled = np.fft.irfft(spectrum, n=num_samples, axis=0) * (num_samples / len(samples))
    return np.clip(np.rint(upsampled), -32768, 32767).astype(np.int16)


def write(path: Path, samples: np.ndarray, sample_rate: int, serial: int) -> None:
    """Write FLAC or Ogg Opus; `serial` numbers the Ogg stream: by default encoders draw it at random."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".flac":
        soundfile.write(path, samples, sample_rate, subtype="PCM_16")
        return
    wav = path.with_suffix(".wav")
    soundfile.write(wav, upsample(samples, sample_rate), OPUS_RATE, subtype="PCM_16")
    command = ["opusenc", "--quiet", "--bitrate", str(OPUS_KBPS), "--serial", str(serial), str(wav), str(path)]
    subprocess.run(command, check=True)
    wav.unlink()


def main() -> None:
    """Render every clip and report durations and sizes."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    clips = [json.loads(line) for line in (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    total_bytes, total_s = 0, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for serial, clip in enumerate(clips, start=1):
            path = folder / clip["id"]
            samples, sample_rate = render(clip["voice"], clip["text"], Path(scratch))
            write(path, samples, sample_rate, serial)
            seconds = len(samples) / sample_rate
            total_bytes, total_s = total_bytes + path.stat().st_size, total_s + seconds
            kilobytes = path.stat().st_size / 1000
            print(f"{clip['id']:32} {seconds:5.2f} s  {sample_rate:6} Hz  {samples.shape[1]} ch  {kilobytes:6.1f} kB")
    print(f"{len(clips)} clips, {total_s:.1f} s, {total_bytes / 1e6:.2f} MB")
    if total_bytes > MAX_TOTAL_BYTES:
        sys.exit(f"the clips take more than {MAX_TOTAL_BYTES} bytes")


if __name__ == "__main__":
    main()
