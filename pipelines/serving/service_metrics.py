"""ServiceMetrics: what a service of decoders counts and times, for Prometheus.

Names, units and labels follow Prometheus' conventions; dashboards and alerts are written with them. Every process that
serves has a registry of its own, which `/metrics` shows. Under Ray a mirror records the same again, so that Ray's own
endpoint on each node has all replicas.
"""

from __future__ import annotations

import threading
from collections import Counter as Count
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client import generate_latest as in_text

from pipelines.decoding.engine_settings import EngineObserver

MAX_VALUES = 32  # of one label; what comes after them counts as OTHER: requests must not make series without end
OTHER = "other"

_LATENCIES_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
_WAITS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_DURATIONS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_FACTORS = (0.5, 0.8, 0.9, 1.0, 1.1, 1.5, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0)
_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Series:
    """One metric: its kind, what it says, its labels beside `codec`, and the upper bounds of a histogram's buckets."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: dict[str, Series] = {
    "quantone_serve_requests_total": Series("counter", "Requests and streams answered.", ("route", "status")),
    "quantone_serve_request_seconds": Series(
        "histogram", "From the request to the last byte of its answer.", ("route",), _DURATIONS_S
    ),
    "quantone_serve_audio_seconds_total": Series("counter", "Seconds of sound, decoded or encoded.", ("route",)),
    "quantone_serve_first_audio_seconds": Series(
        "histogram", "From the first codes of an utterance to its first samples.", (), _LATENCIES_S
    ),
    "quantone_serve_real_time_factor": Series(
        "histogram", "Seconds of sound a second, of one answer.", ("route",), _FACTORS
    ),
    "quantone_serve_underruns_total": Series("counter", "Times that a listener in real time ran out of sound."),
    "quantone_serve_active_streams": Series("gauge", "Streams that hold a slot."),
    "quantone_serve_batch_fill_ratio": Series("histogram", "Rows of a step for each slot, at most 1.", (), _RATIOS),
    "quantone_serve_step_seconds": Series("histogram", "Time that a step of the model takes.", (), _LATENCIES_S),
    "quantone_serve_frames_total": Series("counter", "Frames decoded, those of all rows together."),
    "quantone_serve_queue_seconds": Series(
        "histogram", "Time that an utterance or other work waits for its turn.", (), _WAITS_S
    ),
    "quantone_serve_rejected_total": Series("counter", "Requests refused before any work.", ("reason",)),
    "quantone_serve_expired_total": Series("counter", "Work dropped because its deadline had passed.", ("kind",)),
}
EXPORTED_NAMES = tuple(f"ray_{name}" for name in METRICS)  # as Ray's endpoint has them

Metric = Counter | Gauge | Histogram


class Mirror(Protocol):
    """Where the same is recorded once more."""

    def record(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add to a counter, set a gauge or observe a histogram; must not raise."""


class ServiceMetrics:
    """Counts for all codecs of one process; called from any thread.

    Args:
        mirror: told everything that is recorded.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, mirror: Mirror | None = None) -> None:
        self._registry = CollectorRegistry()
        self._metrics = {name: _build(name, series, self._registry) for name, series in METRICS.items()}
        self._children: dict[tuple[str, ...], tuple[Metric, dict[str, str]]] = {}  # by name and values of labels
        ProcessCollector(registry=self._registry)  # memory, file descriptors, processor time
        self._mirror = mirror
        self._lock, self._bounds = threading.Lock(), threading.Lock()
        self._seen: dict[str, set[str]] = defaultdict(set)  # values by label
        self._streams: Count[str] = Count()

    def observer(self, codec: str) -> CodecObserver:
        """What the engine of a codec tells its steps, streams and queue to."""
        self._record("quantone_serve_active_streams", 0, codec)  # there before the first stream
        return CodecObserver(self, codec)

    def first_audio(self, codec: str, seconds: float) -> None:
        """The first samples of an utterance left, so long after its first codes came."""
        self._record("quantone_serve_first_audio_seconds", seconds, codec)

    def answered(self, codec: str, route: str, status: int, seconds: float, audio_seconds: float) -> None:
        """A request or stream has ended.

        Args:
            codec: its name; empty where a request ended before it had one.
            route: the path as the application declares it.
            status: of the HTTP answer, or the closing code of a WebSocket.
            seconds: from the request to the last byte of the answer.
            audio_seconds: of sound decoded or encoded; 0 for none.
        """
        self._record("quantone_serve_requests_total", 1, codec, route, str(status))
        self._record("quantone_serve_request_seconds", seconds, codec, route)
        if audio_seconds > 0:
            self._record("quantone_serve_audio_seconds_total", audio_seconds, codec, route)
            if seconds > 0:
                self._record("quantone_serve_real_time_factor", audio_seconds / seconds, codec, route)

    def underrun(self, codec: str) -> None:
        """A listener who plays as samples come ran out of them."""
        self._record("quantone_serve_underruns_total", 1, codec)

    def rejected(self, codec: str, reason: str) -> None:
        """A request was refused before any work: reason is one word of a small set."""
        self._record("quantone_serve_rejected_total", 1, codec, reason)

    def render(self) -> bytes:
        """Everything in Prometheus' text format, of type `content_type`."""
        return in_text(self._registry)

    def step(self, codec: str, streams: int, slots: int, frames: int, seconds: float) -> None:
        """The model did a step; see CodecObserver."""
        self._record("quantone_serve_batch_fill_ratio", min(1.0, streams / slots), codec)
        self._record("quantone_serve_step_seconds", seconds, codec)
        self._record("quantone_serve_frames_total", streams * frames, codec)

    def streams_changed(self, codec: str, by: int) -> None:
        """Streams came (1) or went (-1)."""
        with self._lock:  # held while recording: a gauge keeps the last word, which must be the newest
            self._streams[codec] += by
            self._record("quantone_serve_active_streams", self._streams[codec], codec)

    def queued(self, codec: str, seconds: float) -> None:
        """Work left the queue for its first step."""
        self._record("quantone_serve_queue_seconds", seconds, codec)

    def expired(self, codec: str, kind: str) -> None:
        """A deadline passed before its work was done."""
        self._record("quantone_serve_expired_total", 1, codec, kind)

    def _record(self, name: str, value: float, *values: str) -> None:
        metric, labels = self._children.get((name, *values)) or self._child(name, values)
        if isinstance(metric, Counter):
            metric.inc(value)
        elif isinstance(metric, Gauge):
            metric.set(value)
        else:
            metric.observe(value)
        if self._mirror is not None:
            self._mirror.record(name, value, labels)

    def _child(self, name: str, values: tuple[str, ...]) -> tuple[Metric, dict[str, str]]:
        """The series of these values; kept where they are few, because finding it costs more than recording."""
        names = ("codec", *METRICS[name].labels)
        labels = {label: self._bounded(label, text) for label, text in zip(names, values, strict=True)}
        found = self._metrics[name].labels(**labels), labels
        if tuple(labels.values()) == values:
            self._children[name, *values] = found
        return found

    def _bounded(self, label: str, text: str) -> str:
        with self._bounds:
            seen = self._seen[label]
            if text not in seen and len(seen) >= MAX_VALUES:
                return OTHER
            seen.add(text)
            return text


class CodecObserver(EngineObserver):
    """Counts what the engine of one codec tells."""

    def __init__(self, metrics: ServiceMetrics, codec: str) -> None:
        self._metrics = metrics
        self._codec = codec

    def step(self, streams: int, slots: int, frames: int, seconds: float) -> None:
        """One step: its rows (whole utterances too), the slots there are, frames of each row, seconds it took."""
        self._metrics.step(self._codec, streams, slots, frames, seconds)

    def stream_opened(self) -> None:
        """One more active stream."""
        self._metrics.streams_changed(self._codec, 1)

    def stream_closed(self) -> None:
        """One active stream less."""
        self._metrics.streams_changed(self._codec, -1)

    def queued(self, seconds: float) -> None:
        """An utterance or other work waited so long for its turn."""
        self._metrics.queued(self._codec, seconds)

    def rejected(self, kind: str) -> None:
        """A "stream", an "utterance" or "work" was turned away."""
        self._metrics.rejected(self._codec, kind)

    def expired(self, kind: str) -> None:
        """An "utterance" or "work" was dropped at its deadline."""
        self._metrics.expired(self._codec, kind)


def _build(name: str, series: Series, registry: CollectorRegistry) -> Metric:
    labels = ("codec", *series.labels)
    if series.kind == "counter":
        return Counter(name, series.text, labels, registry=registry)
    if series.kind == "gauge":
        return Gauge(name, series.text, labels, registry=registry)
    return Histogram(name, series.text, labels, registry=registry, buckets=series.buckets)
