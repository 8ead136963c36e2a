"""What a service counts and times: names and units as Prometheus wants them, and a number of series that is bounded."""

import itertools
import logging
import re
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.serving.service_metrics import EXPORTED_NAMES, MAX_VALUES, METRICS, OTHER, ServiceMetrics


class Recorder:
    """A mirror that keeps what it is told."""

    def __init__(self):
        self.records = []

    def record(self, name, value, labels):
        self.records.append((name, value, dict(labels)))


def samples(metrics):
    """Value by name and labels, as a scrape sees them."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def value(metrics, name, **labels):
    return samples(metrics)[(name, *sorted(labels.items()))]


@pytest.mark.parametrize("name", METRICS)
def test_names_end_in_their_unit(name):
    """Counters end in _total; times are seconds and shares are ratios, as Prometheus' conventions have it."""
    series = METRICS[name]
    assert re.fullmatch(r"quantone_serve_[a-z_]+", name)
    assert (series.kind == "counter") == name.endswith("_total")
    if series.kind == "histogram":
        assert name.endswith(("_seconds", "_ratio", "_factor"))
        assert list(series.buckets) == sorted(set(series.buckets))
    assert series.text.endswith(".")


def test_the_buckets_of_the_first_audio_tell_milliseconds_apart():
    """From 1 ms to 1 s, no bound more than 2.5 times the one before: a regression from 10 to 30 ms must show."""
    bounds = METRICS["quantone_serve_first_audio_seconds"].buckets
    assert (bounds[0], bounds[-1]) == (0.001, 1.0)
    assert all(high / low <= 2.5 for low, high in itertools.pairwise(bounds))


def test_an_answer_counts_once_with_its_sound_and_its_speed():
    """Requests by route and status, their duration, the sound they made, and how many times real time that was."""
    metrics = ServiceMetrics()
    metrics.answered("tiny", "/v1/audio/decode", 200, 0.5, 10.0)
    metrics.answered("tiny", "/v1/audio/decode", 422, 0.001, 0.0)
    place = {"codec": "tiny", "route": "/v1/audio/decode"}
    assert value(metrics, "quantone_serve_requests_total", **place, status="200") == 1
    assert value(metrics, "quantone_serve_requests_total", **place, status="422") == 1
    assert value(metrics, "quantone_serve_request_seconds_count", **place) == 2
    assert value(metrics, "quantone_serve_audio_seconds_total", **place) == 10.0
    assert value(metrics, "quantone_serve_real_time_factor_sum", **place) == 20.0
    assert value(metrics, "quantone_serve_real_time_factor_count", **place) == 1


def test_an_engine_tells_its_steps_streams_and_queue():
    """Each word of an engine lands in one metric, with the codec's name."""
    metrics = ServiceMetrics()
    engine = metrics.observer("tiny")
    engine.step(streams=8, slots=32, frames=4, seconds=0.003)
    engine.queued(0.2)
    engine.rejected("stream")
    engine.expired("utterance")
    metrics.first_audio("tiny", 0.012)
    metrics.underrun("tiny")
    metrics.rejected("tiny", "too_large")
    assert value(metrics, "quantone_serve_batch_fill_ratio_sum", codec="tiny") == 0.25
    assert value(metrics, "quantone_serve_step_seconds_sum", codec="tiny") == 0.003
    assert value(metrics, "quantone_serve_frames_total", codec="tiny") == 32
    assert value(metrics, "quantone_serve_queue_seconds_sum", codec="tiny") == 0.2
    assert value(metrics, "quantone_serve_first_audio_seconds_bucket", codec="tiny", le="0.02") == 1
    assert value(metrics, "quantone_serve_first_audio_seconds_bucket", codec="tiny", le="0.01") == 0
    assert value(metrics, "quantone_serve_underruns_total", codec="tiny") == 1
    for reason in ("stream", "too_large"):
        assert value(metrics, "quantone_serve_rejected_total", codec="tiny", reason=reason) == 1
    assert value(metrics, "quantone_serve_expired_total", codec="tiny", kind="utterance") == 1


def test_active_streams_are_there_from_the_start_and_end_at_zero():
    """Streams that many threads open and close at once are counted right, and the mirror hears the last word last."""
    recorder = Recorder()
    metrics = ServiceMetrics(recorder)
    engine = metrics.observer("tiny")
    assert value(metrics, "quantone_serve_active_streams", codec="tiny") == 0

    def come_and_go():
        for _ in range(200):
            engine.stream_opened()
            engine.stream_closed()

    engine.stream_opened()
    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "quantone_serve_active_streams", codec="tiny") == 1
    engine.stream_closed()
    assert value(metrics, "quantone_serve_active_streams", codec="tiny") == 0
    assert recorder.records[-1] == ("quantone_serve_active_streams", 0, {"codec": "tiny"})
    assert max(number for _, number, _ in recorder.records) <= 5


def test_requests_cannot_make_series_without_end():
    """A thousand names that somebody invents become MAX_VALUES series and one for the rest, and none is lost."""
    metrics = ServiceMetrics()
    for number in range(1000):
        metrics.rejected(f"codec{number}", "unknown_codec")
    counted = {key: number for key, number in samples(metrics).items() if key[0] == "quantone_serve_rejected_total"}
    assert len(counted) == MAX_VALUES + 1
    assert sum(counted.values()) == 1000
    assert value(metrics, "quantone_serve_rejected_total", codec=OTHER, reason="unknown_codec") == 1000 - MAX_VALUES
    assert len(metrics._children) <= MAX_VALUES


def test_two_services_in_one_process_do_not_share_counts():
    """Each has a registry of its own."""
    one, other = ServiceMetrics(), ServiceMetrics()
    one.underrun("tiny")
    assert value(one, "quantone_serve_underruns_total", codec="tiny") == 1
    assert ("quantone_serve_underruns_total", ("codec", "tiny")) not in samples(other)


def test_the_process_is_shown_too():
    """Memory and file descriptors, in which leaks show."""
    names = {key[0] for key in samples(ServiceMetrics())}
    assert {"process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"} <= names


def test_the_mirror_hears_what_the_page_shows():
    """Names, values and labels are the same in Ray's metrics."""
    recorder = Recorder()
    metrics = ServiceMetrics(recorder)
    metrics.answered("tiny", "/v1/audio/decode", 200, 0.5, 10.0)
    place = {"codec": "tiny", "route": "/v1/audio/decode"}
    assert recorder.records == [
        ("quantone_serve_requests_total", 1, {**place, "status": "200"}),
        ("quantone_serve_request_seconds", 0.5, place),
        ("quantone_serve_audio_seconds_total", 10.0, place),
        ("quantone_serve_real_time_factor", 20.0, place),
    ]
    assert {f"ray_{name}" for name, _, _ in recorder.records} <= set(EXPORTED_NAMES)


@pytest.mark.parametrize("broken", ["_record", "__init__"])
def test_a_broken_mirror_never_fails_a_request(monkeypatch, caplog, broken):
    """The first failure of Ray's metrics is logged once; the page of the process goes on."""
    from ray.util import metrics as ray_metrics

    from pipelines.serving.ray_mirror import RayMirror

    def fail(*arguments, **options):
        raise RuntimeError("no agent")

    monkeypatch.setattr(ray_metrics.Metric, broken, fail)
    with caplog.at_level(logging.WARNING, logger="pipelines.serving.ray_mirror"):
        metrics = ServiceMetrics(RayMirror())
        for _ in range(3):
            metrics.underrun("tiny")
    assert [record.message for record in caplog.records] == ["metrics do not reach Ray: RuntimeError: no agent"]
    assert value(metrics, "quantone_serve_underruns_total", codec="tiny") == 3


def test_the_mirror_records_as_ray_wants_it(monkeypatch):
    """Counters count, gauges keep the last value, histograms observe; nothing is counted as nothing."""
    from ray.util import metrics as ray_metrics

    from pipelines.serving.ray_mirror import RayMirror

    heard = []

    def keep(metric, number, tags=None):
        metric._validate_tags(tags)  # as strict as Ray is
        heard.append((metric.info["name"], number, tags))

    monkeypatch.setattr(ray_metrics.Metric, "_record", keep)
    metrics = ServiceMetrics(RayMirror())
    engine = metrics.observer("tiny")
    engine.stream_opened()
    engine.step(streams=0, slots=4, frames=0, seconds=0.001)
    metrics.first_audio("tiny", float("nan"))
    assert heard == [
        ("quantone_serve_active_streams", 0, {"codec": "tiny"}),
        ("quantone_serve_active_streams", 1, {"codec": "tiny"}),
        ("quantone_serve_batch_fill_ratio", 0.0, {"codec": "tiny"}),
        ("quantone_serve_step_seconds", 0.001, {"codec": "tiny"}),
    ]
