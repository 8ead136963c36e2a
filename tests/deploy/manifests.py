"""The files of deploy/ as data, for the tests."""

import json
import re
import shlex
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"


def read_yaml(name):
    """A manifest of deploy/."""
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def read_schema(name):
    """A JSON schema of this folder."""
    return json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


def pod_templates(manifest):
    """(name, template) of the head and of every group of workers, of a RayJob or a RayService."""
    cluster = manifest["spec"].get("rayClusterSpec") or manifest["spec"]["rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def locked_version(package):
    """The version of a package that requirements.lock installs."""
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{package}=="))


def quantone_commands(text):
    """Every `quantone ...` command of a page or manifest, split as a shell does.

    They begin a line of a code block or comment, follow `ray job submit --`, stand in the quotes of `ray exec`, or in
    backticks.
    """
    for line in text.splitlines():
        words = line.lstrip("#$ ").split("  #")[0]
        inline = re.findall(r"`(?:ray job submit [^`]*-- )?(quantone [^`]+)`", words)
        if inline:
            yield from map(shlex.split, inline)
        elif "ray exec" in words:
            yield shlex.split(shlex.split(words)[3])
        elif words.startswith("quantone ") or " -- quantone " in words:
            yield shlex.split(words.split(" -- ")[-1])
