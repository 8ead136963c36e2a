"""The Grafana dashboard: the structure that Grafana imports, and metrics that exist."""

import json
import re
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY

DASHBOARD = json.loads((DEPLOY / "grafana" / "quantone.json").read_text(encoding="utf-8"))
PANELS = DASHBOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def names_in(text):
    return set(re.findall(r"\bray_[a-z0-9_]+", text))


def test_every_metric_is_one_that_is_exported():
    """Ours by the code that records them, Ray's own by the dashboards that come with Ray."""
    import ray

    from pipelines.job_metrics import EXPORTED_NAMES

    used = set().union(*map(names_in, EXPRESSIONS))
    ours = {name for name in used if name.startswith("ray_quantone_")}
    assert ours <= set(EXPORTED_NAMES)
    shipped = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards/default_dashboard_panels.py"
    assert used - ours <= names_in(shipped.read_text(encoding="utf-8"))


def test_every_metric_of_a_job_is_shown():
    """What nobody looks at need not be recorded."""
    from pipelines.job_metrics import EXPORTED_NAMES

    assert set(EXPORTED_NAMES) <= set().union(*map(names_in, EXPRESSIONS))


def test_labels_are_those_that_are_recorded():
    """A grouping by a label that no series has would show one nameless line."""
    from pipelines.job_metrics import METRICS

    recorded = {"dataset", "codec", *(tag for _, _, tag in METRICS.values() if tag)}
    for expression in EXPRESSIONS:
        for labels in re.findall(r"\bby \(([^)]*)\)", expression):
            assert {label.strip() for label in labels.split(",")} <= recorded
        for selector in re.findall(r"ray_quantone_\w+\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=", selector)) <= recorded


def test_brackets_of_expressions_are_closed():
    """Prometheus would refuse the query, and Grafana show an empty panel."""
    for expression in EXPRESSIONS:
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), expression


def test_grafana_can_import_it():
    """Schema version, a data source that is chosen on import, unique panels that lie on the grid."""
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["title"]
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["dataset"]["type"] == "query"
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
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


def test_panels_do_not_overlap():
    """Grafana would push them about."""
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
