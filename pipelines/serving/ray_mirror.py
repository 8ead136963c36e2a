"""RayMirror: the service's metrics once more through Ray, whose endpoint on each node has those of all replicas.

Names get `ray_` in front there, and labels of Ray Serve's: application, deployment, replica. Imported after Ray has its
settings, in a replica.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from pipelines.serving.service_metrics import METRICS, Series

_log = logging.getLogger(__name__)


class RayMirror:
    """Records what ServiceMetrics does. No call raises: after the first failure the service goes on without it."""

    def __init__(self) -> None:
        self._metrics: dict[str, Counter | Gauge | Histogram] = {}
        try:
            self._metrics = {name: _build(name, series) for name, series in METRICS.items()}
        except Exception as error:  # noqa: BLE001 - see the class
            self._give_up(error)

    def record(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Add to a counter, set a gauge or observe a histogram."""
        metric = self._metrics.get(name)
        if metric is None or not math.isfinite(value):
            return
        tags = dict(labels)  # Ray writes into it
        try:
            if isinstance(metric, Gauge):
                metric.set(value, tags=tags)
            elif isinstance(metric, Histogram):
                metric.observe(value, tags=tags)
            elif value > 0:  # Ray refuses to count nothing
                metric.inc(value, tags=tags)
        except Exception as error:  # noqa: BLE001 - see the class
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._metrics = {}
        _log.warning("metrics do not reach Ray: %s: %s", type(error).__name__, error)


def _build(name: str, series: Series) -> Counter | Gauge | Histogram:
    labels: Any = ("codec", *series.labels)  # Ray's annotation knows one label only
    if series.kind == "counter":
        return Counter(name, series.text, labels)
    if series.kind == "gauge":
        return Gauge(name, series.text, labels)
    return Histogram(name, series.text, list(series.buckets), labels)
