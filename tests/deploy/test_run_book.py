"""The run-book: commands that exist, metrics that are exported, and messages as the code words them."""

import re
import shlex

import pytest
from typer.main import get_command

from pipelines.cli import app
from pipelines.corpus.job_metrics import EXPORTED_NAMES
from tests.deploy.manifests import DEPLOY, REPOSITORY, quantone_commands, read_yaml

PAGE = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
COMMANDS = [
    *quantone_commands(PAGE),
    *quantone_commands((DEPLOY / "corpus/cluster.yaml").read_text(encoding="utf-8")),
    shlex.split(read_yaml("corpus/rayjob.yaml")["spec"]["entrypoint"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[1:3]))
def test_commands_are_taken_as_they_stand(command):
    """Every option is one that the command line has, with a value of its kind."""
    group = get_command(app)
    name = command[1]
    group.commands[name].make_context(name, command[2:])  # parses, and raises where it cannot


def test_the_commands_of_the_page_are_found():
    """The law above holds for more than nothing: plain lines, inline code, `ray job submit` and `ray exec`."""
    found = {tuple(command[1:2]) + tuple(word for word in command if word.startswith("--")) for command in COMMANDS}
    assert ("verify",) in found
    assert ("tokenize", "--address") in found
    assert ("tokenize", "--gpus-per-worker", "--num-workers") in found
    assert len(COMMANDS) >= 9


def test_the_table_of_metrics_is_complete():
    """What the page lists is what jobs export, no less and no more."""
    table = PAGE.partition("### Metrics")[2].partition("```")[0]
    named = set(re.findall(r"ray_quantone_\w+", table))
    assert "`ray_quantone_units_committed`, `..._planned`" in table
    assert named | {"ray_quantone_units_planned"} == set(EXPORTED_NAMES)


def test_messages_are_quoted_as_they_are_worded():
    """Who searches the page for what the terminal says finds it."""
    elsewhere = {"Version mismatch", "Ray version mismatch", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
    elsewhere |= {"waiting", "verify", "node"}  # not messages of ours
    elsewhere |= {"has no quantone", "has torch"}  # put together; held by test_ray_session.py
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "pipelines").rglob("*.py")))
    rows = PAGE.partition("## What failures look like")[2].partition("\n## ")[0].splitlines()
    quoted = [text for row in rows if row.startswith("|") for text in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    fragments = [part.strip(" :,") for text in quoted for part in text.split("...") if part.strip(" :,")]
    assert len(fragments) >= 12
    assert [fragment for fragment in fragments if fragment not in elsewhere and fragment not in code] == []


def test_the_files_that_the_page_names_are_there():
    """A path in a run-book that leads nowhere costs the night."""
    for path in set(re.findall(r"\bdeploy/[\w./-]*\w", PAGE)):
        assert (REPOSITORY / path).exists(), path
