"""The Grafana dashboards: the structure that Grafana imports, and metrics that exist."""

import json
import re

import pytest

from tests.deploy.manifests import DEPLOY

DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((DEPLOY / "grafana").glob("*.json"))
}
JOBS, SERVING = "quantone", "quantone_serving"
SERVE_NAME = r'__name__=~"\(ray_\)\?(quantone_serve_[a-z_]+)"'  # with ray_ in front of it or without
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
]
every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)


def expressions(name):
    return [target["expr"] for panel in DASHBOARDS[name]["panels"] for target in panel["targets"]]


def names_in(text):
    return set(re.findall(r"\bray_[a-z0-9_]+", text))


def served_names():
    """Metrics of the service that its page asks for, without what a histogram adds to its name."""
    found = {name for expression in expressions(SERVING) for name in re.findall(SERVE_NAME, expression)}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def test_there_is_a_page_for_jobs_and_one_for_the_service():
    """The tests below walk all of them."""
    assert set(DASHBOARDS) == {JOBS, SERVING}


def test_every_metric_is_one_that_is_exported():
    """Ours by the code that records them, Ray's own by the dashboards that come with Ray."""
    from pathlib import Path

    import ray

    from pipelines.corpus.job_metrics import EXPORTED_NAMES

    used = set().union(*map(names_in, expressions(JOBS)))
    ours = {name for name in used if name.startswith("ray_quantone_")}
    assert ours <= set(EXPORTED_NAMES)
    shipped = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards/default_dashboard_panels.py"
    assert used - ours <= names_in(shipped.read_text(encoding="utf-8"))


def test_every_metric_of_a_job_is_shown():
    """What nobody looks at need not be recorded."""
    from pipelines.corpus.job_metrics import EXPORTED_NAMES

    assert set(EXPORTED_NAMES) <= set().union(*map(names_in, expressions(JOBS)))


def test_the_page_of_the_service_shows_exactly_what_it_records():
    """From replicas, where Ray puts `ray_` in front, and from one process, where nobody does."""
    from pipelines.serving.service_metrics import METRICS

    assert served_names() == set(METRICS)


def test_histograms_are_asked_as_histograms():
    """A quantile needs the buckets, a mean the sum and the count; counters are rates, gauges are not."""
    from pipelines.serving.service_metrics import METRICS

    for expression in expressions(SERVING):
        for name in re.findall(SERVE_NAME, expression):
            plain = re.sub(r"_(bucket|sum|count)$", "", name)
            kind = METRICS[plain].kind
            assert (kind == "histogram") == (name != plain), expression
            assert (kind == "gauge") == ("rate(" not in expression), expression
            assert name.endswith("_bucket") == ("histogram_quantile(" in expression), expression
        assert ("histogram_quantile(" in expression) == ("by (le" in expression)


def test_labels_are_those_that_are_recorded():
    """A grouping by a label that no series has would show one nameless line."""
    from pipelines.corpus.job_metrics import METRICS as JOB_METRICS
    from pipelines.serving.service_metrics import METRICS as SERVE_METRICS

    recorded = {
        JOBS: {"dataset", "codec", *(tag for _, _, tag in JOB_METRICS.values() if tag)},
        # replica: Ray Serve's own; le: of every histogram.
        SERVING: {"codec", "replica", "le", *(label for series in SERVE_METRICS.values() for label in series.labels)},
    }
    for name, known in recorded.items():
        for expression in expressions(name):
            for labels in re.findall(r"\bby \(([^)]*)\)", expression):
                assert {label.strip() for label in labels.split(",")} <= known
            for selector in re.findall(r"(?:ray_quantone_\w+)?\{([^}]*)\}", expression):
                assert set(re.findall(r"(\w+)=", selector)) <= known | {"__name__"}


@every_dashboard
def test_brackets_of_expressions_are_closed(dashboard):
    """Prometheus would refuse the query, and Grafana show an empty panel."""
    for expression in (target["expr"] for panel in dashboard["panels"] for target in panel["targets"]):
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), expression


@every_dashboard
def test_grafana_can_import_it(dashboard):
    """Schema version, a data source that is chosen on import, a filter, unique panels."""
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["title"]
    assert re.fullmatch(r"[\w-]{1,40}", dashboard["uid"])
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    (filtered,) = variables.keys() - {"datasource"}
    assert variables[filtered]["type"] == "query"
    assert all(f"${filtered}" in json.dumps(panel) or "ray_node" in json.dumps(panel) for panel in dashboard["panels"])
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_dashboards_do_not_replace_each_other():
    """Grafana keeps one for each uid."""
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("panel", PANELS)
def test_panels_are_complete(panel):
    """A title, a reason to look at it, a unit, and queries of the chosen data source with a letter each."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["type"] in {"stat", "gauge", "timeseries"}
    assert panel["title"]
    assert panel["description"]
    assert panel["datasource"] == source
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert [target["refId"] for target in panel["targets"]] == list("ABCD")[: len(panel["targets"])]
    assert all(target["datasource"] == source for target in panel["targets"])
    place = panel["gridPos"]
    assert 0 <= place["x"] < place["x"] + place["w"] <= 24


@every_dashboard
def test_panels_do_not_overlap(dashboard):
    """Grafana would push them about."""
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
