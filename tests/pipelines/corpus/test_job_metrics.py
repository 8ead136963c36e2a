"""What the metrics of a corpus job record, and that they never stand in its way."""

import logging
import time
import urllib.request
import uuid

import pytest

pytestmark = pytest.mark.usefixtures("ray_session")

JOB_TAGS = {"dataset": "tokens", "codec": "tiny"}


class Recorder:
    """Stands where Ray's metric writes: keeps what would have gone to the agent."""

    def __init__(self):
        self.records = []

    def __call__(self, metric, value, tags=None):
        metric._validate_tags(tags)  # as strict as Ray is
        self.records.append((metric.info["name"], value, tags))

    def series(self, name):
        """Value by what the job's own tags leave of the tags; the last one of a gauge, the sum of a counter."""
        found = {}
        for recorded, value, tags in self.records:
            if recorded == name:
                own = tuple(sorted(tags.items() - JOB_TAGS.items()))
                found[own] = value + (found.get(own, 0) if name.endswith("_total") else 0)
        return found


@pytest.fixture
def recorder(monkeypatch):
    from ray.util import metrics

    made = Recorder()
    monkeypatch.setattr(metrics.Metric, "_record", lambda metric, value, tags=None: made(metric, value, tags))
    return made


@pytest.fixture
def job_metrics():
    from pipelines.corpus.job_metrics import JobMetrics

    return JobMetrics("s3://bucket/some/tokens/", "/codecs/tiny")


def test_files_are_counted_by_outcome_and_errors_by_class(recorder, job_metrics):
    """Every input counts once as ok or error; the classes of the errors add up to those."""
    job_metrics.files_done(5, {"AudioError": 2, "timed_out": 1}, 60.5)
    job_metrics.files_done(3, {"AudioError": 1}, 30.0)
    assert recorder.series("quantone_files_total") == {(("outcome", "ok"),): 8, (("outcome", "error"),): 4}
    assert recorder.series("quantone_errors_total") == {(("error", "AudioError"),): 3, (("error", "timed_out"),): 1}
    assert recorder.series("quantone_audio_seconds_total") == {(): 90.5}


def test_gauges_say_how_it_is_now(recorder, job_metrics):
    """Queues by stage, encoders, units and speed: the last word counts, zero included."""
    job_metrics.queue_depths(reading=4, waiting=1, encoding=2, committing=1)
    job_metrics.queue_depths(reading=0, waiting=3, encoding=2, committing=1)
    job_metrics.encoders(alive=2, busy_share=0.75)
    job_metrics.units_done(7, 20)
    job_metrics.real_time_factor(180.0)
    depths = {dict(tags)["stage"]: depth for tags, depth in recorder.series("quantone_queue_depth").items()}
    assert depths == {"reading": 0, "waiting": 3, "encoding": 2, "committing": 1}
    assert recorder.series("quantone_encoders") == {(): 2}
    assert recorder.series("quantone_encoder_busy_ratio") == {(): 0.75}
    assert recorder.series("quantone_units_committed") == {(): 7}
    assert recorder.series("quantone_units_planned") == {(): 20}
    assert recorder.series("quantone_real_time_factor") == {(): 180.0}


def test_the_number_of_series_is_bounded(recorder, job_metrics):
    """A source that fails in a thousand ways does not fill the metrics store: what comes late counts as other."""
    from pipelines.corpus.job_metrics import MAX_ERROR_CLASSES

    for number in range(1000):
        job_metrics.files_done(0, {f"Error{number}": 1}, 0.0)
    series = recorder.series("quantone_errors_total")
    assert len(series) == MAX_ERROR_CLASSES + 1
    assert series[(("error", "other"),)] == 1000 - MAX_ERROR_CLASSES
    assert sum(series.values()) == 1000


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://bucket/speech/tokens/", "tokens"),
        ("tokens", "tokens"),
        ("/data/my tokens#1", "my_tokens_1"),
        ("/", "unnamed"),
        ("s3://bucket/" + "x" * 500, "x" * 40),
    ],
)
def test_a_dataset_is_tagged_by_a_short_name(recorder, uri, name):
    """The last name of the path alone: bounded, and without what the rest of a URI may betray."""
    from pipelines.corpus.job_metrics import JobMetrics

    JobMetrics(uri, "tiny").real_time_factor(1.0)
    assert recorder.records == [("quantone_real_time_factor", 1.0, {"dataset": name, "codec": "tiny"})]


def test_a_number_that_is_none_is_left_out(recorder, job_metrics):
    """A rate over no time at all says nothing."""
    job_metrics.real_time_factor(float("nan"))
    job_metrics.encoders(alive=0, busy_share=float("inf"))
    assert [name for name, _, _ in recorder.records] == ["quantone_encoders"]


@pytest.mark.parametrize("broken", ["_record", "__init__"])
def test_broken_metrics_never_fail_a_job(monkeypatch, caplog, broken):
    """The first failure is logged once, and the job goes on without metrics."""
    from ray.util import metrics

    from pipelines.corpus.job_metrics import JobMetrics

    def fail(*arguments, **options):
        raise RuntimeError("no agent")

    monkeypatch.setattr(metrics.Metric, broken, fail)
    with caplog.at_level(logging.WARNING, logger="pipelines.corpus.job_metrics"):
        job = JobMetrics("tokens", "tiny")
        for _ in range(3):
            job.files_done(1, {"AudioError": 1}, 1.0)
            job.queue_depths(reading=1, waiting=1, encoding=1, committing=1)
    assert [record.message for record in caplog.records] == ["metrics are off: RuntimeError: no agent"]


@pytest.mark.slow
def test_a_scrape_of_the_node_shows_them():
    """Ray's own Prometheus endpoint has every metric under its exported name, with its type and tags."""
    pytest.importorskip("prometheus_client", reason="Ray exports metrics where ray[default] is installed")
    import ray

    from pipelines.corpus.job_metrics import EXPORTED_NAMES, JobMetrics

    name = uuid.uuid4().hex  # other jobs have been in this session
    job = JobMetrics(f"s3://bucket/some/{name}/", "/codecs/tiny")
    job.files_done(5, {"AudioError": 2}, 60.5)
    job.queue_depths(reading=4, waiting=1, encoding=2, committing=1)
    job.encoders(alive=2, busy_share=0.75)
    job.units_done(7, 20)
    job.real_time_factor(180.0)
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    own: list[str] = []
    page, deadline = "", time.monotonic() + 60
    while {line.partition("{")[0] for line in own} != set(EXPORTED_NAMES) and time.monotonic() < deadline:
        time.sleep(1)
        with urllib.request.urlopen(url, timeout=5) as answer:
            page = answer.read().decode()
        own = [line for line in page.splitlines() if f'dataset="{name}"' in line]
    assert {line.partition("{")[0] for line in own} == set(EXPORTED_NAMES)
    assert [exported for exported in EXPORTED_NAMES if f"# TYPE {exported} " not in page] == []
    seconds = [line for line in own if line.startswith("ray_quantone_audio_seconds_total{")]
    assert [line.split()[-1] for line in seconds] == ["60.5"]
    assert all('codec="tiny"' in line for line in own)
