"""A folder to listen in, without a server: a blind test, an open page with names and scores, and the audio of both.

index.html       the blind test, MUSHRA-style (ITU-R BS.1534): hidden reference, low anchor, every system
open.html        the same clips with names, pictures and scores
data.js          clips, and the conditions of their tokens
audio/clip-1.js  the versions of one clip by token, as base64: pages opened as files may run scripts, not read files
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pipelines.evaluating.evaluation_clips import EvaluationClip, read_clip, spread
from pipelines.evaluating.evaluation_scores import ClipScore, Evaluation
from pipelines.evaluating.mushra_results import COLUMNS, REFERENCE
from pipelines.evaluating.open_page import OpenClip, Version, render_open_page
from pipelines.evaluating.round_trips import OPUS_KBPS, reference_of, round_trips
from pipelines.evaluating.stimuli import Stimulus, make_stimuli
from pipelines.spectrogram import reference_level, spectrogram_png

ASSETS = ("index.html", "style.css", "player.js", "blind.js", "open.js")
ID_DIGITS = 10  # hexadecimal, of the test and of tokens


@dataclass(frozen=True, slots=True)
class ListeningPages:
    """Where the pages are."""

    blind: Path
    open: Path


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One clip as listeners get it."""

    clip: EvaluationClip
    stimuli: list[Stimulus]


def write_listening_pages(evaluation: Evaluation, folder: Path, *, num_clips: int = 8) -> ListeningPages:
    """Write the folder; the same evaluation gives the same folder, byte for byte.

    Args:
        evaluation: its codecs and clips are what is listened to, at most its `max_clip_s` of each.
        folder: created where there is none; files of an earlier test in it are replaced.
        num_clips: at most so many, spread over the clips.

    Raises:
        ValueError: num_clips is below 1.
        AudioError, OSError: a clip cannot be read any more.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips must be at least 1, not {num_clips}")
    trials = [_make_trial(evaluation, clip) for clip in spread(evaluation.listed, num_clips)]
    test_id = _test_id(trials)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for old in (folder / "audio").glob("clip-*.js"):
        old.unlink()
    conditions: dict[str, str] = {}
    listed = []
    for number, trial in enumerate(trials, 1):
        key = f"clip-{number}"
        tokens = {_token(test_id, key, one.condition): one for one in trial.stimuli}
        conditions.update({token: one.condition for token, one in tokens.items()})
        listed.append({"key": key, "name": trial.clip.id, "tokens": sorted(tokens)})
        recordings = {token: base64.b64encode(tokens[token].flac).decode() for token in sorted(tokens)}
        script = f"quantoneAudio({json.dumps(key)}, {json.dumps(recordings)});\n"
        (folder / "audio" / f"{key}.js").write_text(script, encoding="utf-8")
    data = {
        "id": test_id,
        "sampleRate": evaluation.sample_rate,
        "columns": COLUMNS,
        "reference": REFERENCE,
        "clips": listed,
        "sealed": base64.b64encode(json.dumps(conditions, sort_keys=True).encode()).decode(),
    }
    (folder / "data.js").write_text(f"window.quantoneTest = {json.dumps(data, indent=1)};\n", encoding="utf-8")
    assets = resources.files("pipelines.evaluating").joinpath("listening")
    for name in ASSETS:
        (folder / name).write_bytes(assets.joinpath(name).read_bytes())
    opened = [_opened(evaluation, f"clip-{number}", trial) for number, trial in enumerate(trials, 1)]
    (folder / "open.html").write_text(render_open_page(evaluation, opened), encoding="utf-8")
    return ListeningPages(folder / "index.html", folder / "open.html")


def condition_name(system: str, kbps: float) -> str:
    """A system at one bandwidth, as tables and results name it."""
    return f"{system} {kbps:g} kbps"


def _make_trial(evaluation: Evaluation, clip: EvaluationClip) -> _Trial:
    waveform, source_rate = read_clip(clip, evaluation.max_clip_s)
    rate = evaluation.sample_rate
    trips = round_trips(evaluation.contestants, OPUS_KBPS if evaluation.opus else (), waveform, source_rate, rate)
    systems = {condition_name(trip.system, trip.bandwidth_kbps): trip.waveform.numpy() for trip in trips}
    reference = reference_of(waveform, source_rate, rate).numpy()
    return _Trial(clip, make_stimuli(reference, systems, rate))


def _test_id(trials: Sequence[_Trial]) -> str:
    """Of what is heard: ratings of one test are never taken for those of another."""
    digest = hashlib.sha256()
    for trial in trials:
        for one in trial.stimuli:
            digest.update(f"{trial.clip.id}\0{one.condition}\0".encode())
            digest.update(one.flac)
    return digest.hexdigest()[:ID_DIGITS]


def _token(test_id: str, key: str, condition: str) -> str:
    return hashlib.sha256(f"{test_id}\0{key}\0{condition}".encode()).hexdigest()[:ID_DIGITS]


def _opened(evaluation: Evaluation, key: str, trial: _Trial) -> OpenClip:
    scores = {condition_name(one.system, one.bandwidth_kbps): one for one in evaluation.clips[trial.clip.id]}
    return OpenClip(key, trial.clip.id, tuple(_versions(trial.stimuli, scores, evaluation.sample_rate)))


def _versions(stimuli: Sequence[Stimulus], scores: Mapping[str, ClipScore], sample_rate: int) -> Iterator[Version]:
    loudest = reference_level(stimuli[0].waveform, sample_rate)
    for one in stimuli:
        picture = spectrogram_png(one.waveform, sample_rate, loudest)
        yield Version(one.condition, picture, scores[one.condition].scores if one.condition in scores else {})
