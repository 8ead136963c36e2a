"""Prometheus metrics of a corpus job: what its conductor knows, exported by Ray's own metrics endpoint.

Ray's agent on each node serves them on the node's metrics port (`ray start --metrics-export-port`), with `ray_` in
front of each name, where `ray[default]` is installed; elsewhere, and in a driver that is a Ray client (`ray://`), they
go nowhere. Only the driver records, a few calls a bundle. Gauges end with the job, counters stay as they were.
Imported after Ray has its settings, like the conductor.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

MAX_ERROR_CLASSES = 16  # series a dataset; what comes after them counts as OTHER
OTHER = "other"
MAX_NAME_LENGTH = 40

_TAGS = ("dataset", "codec")
# name -> (kind, what it says, tag of its own). The names are an interface: dashboards and alerts are written with them.
METRICS: dict[str, tuple[type[Counter | Gauge], str, str | None]] = {
    "quantone_audio_seconds_total": (Counter, "Seconds of audio that became tokens.", None),
    "quantone_files_total": (Counter, "Inputs that are done, by outcome: ok or error.", "outcome"),
    "quantone_errors_total": (Counter, "Inputs that became an error row, by class of error.", "error"),
    "quantone_queue_depth": (Gauge, "Bundles (units where committing) in a stage of the job.", "stage"),
    "quantone_encoders": (Gauge, "Encoders that are alive.", None),
    "quantone_encoder_busy_ratio": (Gauge, "Share of the encoders' time spent at work, 0 to 1.", None),
    "quantone_units_committed": (Gauge, "Units that are in the dataset, those of earlier runs included.", None),
    "quantone_units_planned": (Gauge, "Units of the plan.", None),
    "quantone_real_time_factor": (Gauge, "Seconds of audio done per second.", None),
}
EXPORTED_NAMES = tuple(f"ray_{name}" for name in METRICS)

_log = logging.getLogger(__name__)


class JobMetrics:
    """Records how a job goes. No call raises: after the first failure the job goes on without metrics.

    Args:
        dataset: URI or directory; its last name, cut to MAX_NAME_LENGTH characters, is the tag.
        codec: name or directory; likewise.
    """

    def __init__(self, dataset: str, codec: str) -> None:
        self._tags = {"dataset": _short_name(dataset), "codec": _short_name(codec)}
        self._error_classes: set[str] = set()
        self._metrics: dict[str, Counter | Gauge] = {}
        try:
            for name, (kind, text, tag) in METRICS.items():
                keys = _TAGS if tag is None else (*_TAGS, tag)
                self._metrics[name] = kind(name, description=text, tag_keys=keys)
        except Exception as error:  # noqa: BLE001 - see the class
            self._give_up(error)

    def files_done(self, num_ok: int, errors: Mapping[str, int], audio_seconds: float) -> None:
        """Count what a bundle added.

        Args:
            num_ok: inputs that became rows of parts/.
            errors: how many became rows of errors/, by class.
            audio_seconds: of the inputs that worked.
        """
        self._record("quantone_files_total", num_ok, outcome="ok")
        self._record("quantone_files_total", sum(errors.values()), outcome="error")
        self._record("quantone_audio_seconds_total", audio_seconds)
        for name, count in errors.items():
            self._record("quantone_errors_total", count, error=self._bounded(name))

    def queue_depths(self, *, reading: int, waiting: int, encoding: int, committing: int) -> None:
        """How many bundles are being read, wait for an encoder and are being encoded, and how many units committed."""
        for stage, depth in (
            ("reading", reading),
            ("waiting", waiting),
            ("encoding", encoding),
            ("committing", committing),
        ):
            self._record("quantone_queue_depth", depth, stage=stage)

    def encoders(self, *, alive: int, busy_share: float) -> None:
        """How many encoders there are, and the share of time they were at work since the last call."""
        self._record("quantone_encoders", alive)
        self._record("quantone_encoder_busy_ratio", busy_share)

    def units_done(self, num_units: int, num_planned: int) -> None:
        """How many units of the plan are in the dataset, whoever committed them."""
        self._record("quantone_units_committed", num_units)
        self._record("quantone_units_planned", num_planned)

    def real_time_factor(self, factor: float) -> None:
        """Seconds of audio done per second."""
        self._record("quantone_real_time_factor", factor)

    def _record(self, name: str, value: float, **tags: str) -> None:
        metric = self._metrics.get(name)
        if metric is None or not math.isfinite(value):
            return
        try:
            if isinstance(metric, Gauge):
                metric.set(value, tags={**self._tags, **tags})
            elif value > 0:  # Ray refuses to count nothing
                metric.inc(value, tags={**self._tags, **tags})
        except Exception as error:  # noqa: BLE001 - see the class
            self._give_up(error)

    def _bounded(self, error_class: str) -> str:
        if error_class in self._error_classes or len(self._error_classes) < MAX_ERROR_CLASSES:
            self._error_classes.add(error_class)
            return error_class
        return OTHER

    def _give_up(self, error: Exception) -> None:
        self._metrics = {}
        _log.warning("metrics are off: %s: %s", type(error).__name__, error)


def _short_name(uri: str) -> str:
    """The last name of a path: what stands before it may be long, or private, and tells dashboards little."""
    name = uri.rstrip("/").rpartition("/")[-1]
    return re.sub(r"[^\w.:-]", "_", name)[:MAX_NAME_LENGTH] or "unnamed"
