"""docs/serving.md and the run-book of the service: commands, limits, metrics and messages as the code has them."""

import dataclasses
import re

import pytest
import typer
from typer.main import get_command

from pipelines.commands.cli_serve import serve_command
from pipelines.decoding.engine_settings import EngineSettings
from pipelines.serving.service_metrics import METRICS
from pipelines.serving.service_settings import ServiceSettings
from tests.deploy.manifests import REPOSITORY, quantone_commands, read_yaml

PAGE = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
RUN_BOOK = (REPOSITORY / "deploy" / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    command
    for text in (PAGE, RUN_BOOK, serve_command.__doc__)
    for command in quantone_commands(text.replace("QUANTONE_SERVE_TOKEN=... ", ""))
    if command[1:2] == ["serve"]
]


def section(title):
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def rows(title):
    """First cells of a section's table and the whole rows, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return {line.split("|")[1].strip(): line for line in lines}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_are_taken_as_they_stand(command):
    """Every option is one that the command line has, with a value of its kind."""
    app = typer.Typer()
    app.command("serve")(serve_command)
    app.callback()(lambda: None)
    get_command(app).commands["serve"].make_context("serve", command[2:])


def test_the_commands_of_the_pages_are_found():
    """The law above holds for more than nothing."""
    assert len(COMMANDS) >= 8
    assert any("--haproxy" in command for command in COMMANDS)


def test_the_table_of_limits_is_complete():
    """Every limit of the engine and of the service but the token, with its default."""
    table = rows("Limits")
    fields = {
        field.name: field.default for kind in (EngineSettings, ServiceSettings) for field in dataclasses.fields(kind)
    }
    assert {name.strip("`") for name in table} == fields.keys() - {"token"}
    for name, default in fields.items():
        if isinstance(default, int | float) and name not in ("drain_timeout_s", "max_body_bytes", "max_held_bytes"):
            assert f"| {default:g} |" in table[f"`{name}`"]


def test_the_options_of_the_table_have_these_defaults():
    """An option without its default in the page, or with another, would mislead."""
    app = typer.Typer()
    app.command("serve")(serve_command)
    options = {option: parameter for parameter in get_command(app).params for option in parameter.opts}
    named = {
        match[1]: row.split("|")[3].strip()
        for row in rows("Limits").values()
        if (match := re.search(r"\| `(--[\w-]+)`", row))
    }
    assert len(named) >= 5
    for option, shown in named.items():
        default = options[option].default
        if default is not None:
            assert shown.removesuffix(" MiB") == f"{default:g}"


def test_the_table_of_metrics_is_complete():
    """What the page lists is what is recorded, with its labels."""
    table = rows("Metrics")
    assert {name.strip("`") for name in table} == set(METRICS)
    for name, series in METRICS.items():
        shown = re.findall(r"`(\w+)`", table[f"`{name}`"].split("|")[2])
        assert tuple(shown) == series.labels
        assert ("histogram" in table[f"`{name}`"]) == (series.kind == "histogram")


def test_messages_are_quoted_as_they_are_worded():
    """Who searches the page for what the terminal says finds it."""
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "pipelines").rglob("*.py")))
    quoted = [text for cell in rows("What failures look like") for text in re.findall(r"`([^`]+)`", cell)]
    fragments = [part.strip(" :,") for text in quoted for part in text.split("...") if part.strip(" :,")]
    assert len(fragments) >= 6
    assert [fragment for fragment in fragments if fragment not in code] == []


def test_variables_are_those_of_the_manifest():
    """What the pages tell to export on a cluster is what Kubernetes gets, with the same values."""
    (pod,) = [
        group["template"]
        for group in read_yaml("serve/rayservice.yaml")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    ]
    expected = {variable["name"]: variable["value"] for variable in pod["spec"]["containers"][0]["env"]}
    for text in (PAGE, RUN_BOOK):
        pairs = re.findall(r"(RAY_SERVE_\w+)=(?:'([^']+)'|([^'\s]+))", text)
        found = {name: quoted or bare for name, quoted, bare in pairs}
        assert found == expected


@pytest.mark.parametrize("text", [PAGE, RUN_BOOK], ids=["page", "run-book"])
def test_the_files_that_the_pages_name_are_there(text):
    """A path in a run-book that leads nowhere costs the night."""
    for path in set(re.findall(r"\bdeploy/[\w./-]*\w", text)):
        assert (REPOSITORY / path).exists(), path


def test_links_lead_somewhere():
    """Sections of the page by the anchors that a renderer makes of their titles, and files beside it."""
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", PAGE, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, anchor = target.partition("#")
        if not path:
            assert anchor in anchors, target
        elif not path.startswith("http"):
            assert (REPOSITORY / "docs" / path).exists(), target
