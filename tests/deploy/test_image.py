"""The Dockerfile: it parses, its steps fit the repository, and it runs without root and without secrets."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.deploy.manifests import DEPLOY, REPOSITORY

TEXT = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def instructions():
    """(word, rest) of every instruction, continued lines joined."""
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        yield word, rest.strip()


def of(word):
    return [rest for name, rest in instructions() if name == word]


def test_hadolint_has_nothing_to_say():
    """A parser of Dockerfiles and the shell in them, with the rules of the trade."""
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    assert program is not None, "hadolint is missing: it comes with the extra dev"
    done = subprocess.run([program, str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_instructions_are_known():
    """A misspelt one would only show when somebody builds."""
    known = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in instructions()} <= known


def test_it_runs_without_root():
    """By number, so that Kubernetes can tell; nothing after it becomes root again."""
    (user,) = of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert TEXT.index("USER ") > TEXT.rindex("RUN ")


def test_signals_reach_the_program():
    """The exec form, under an init that reaps what Ray's workers leave."""
    assert of("ENTRYPOINT") == ['["tini", "--"]']
    assert of("CMD") == ['["quantone", "--help"]']


def test_packages_are_those_of_the_lock():
    """Every installation by pip is bound to requirements.lock, except that of Quantone alone, without dependencies."""
    installations = [step for rest in of("RUN") for step in rest.split("&&") if "pip install" in step]
    assert len(installations) == 3
    for step in installations:
        assert "-c requirements.lock" in step or "--no-deps" in step, step


def test_cpu_and_cuda_differ_in_one_argument():
    """TORCH_INDEX: the index of CPU builds, or empty for the usual one, whose builds are for CUDA."""
    assert [argument for argument in of("ARG") if argument.startswith("TORCH_INDEX=")] == [
        "TORCH_INDEX=https://download.pytorch.org/whl/cpu"
    ]
    assert '${TORCH_INDEX:+--index-url "$TORCH_INDEX"}' in TEXT


def test_the_list_of_packages_is_what_pyproject_has(tmp_path):
    """The step that reads dependencies before the code is copied runs, and leaves none out."""
    (step,) = (rest for rest in of("RUN") if "tomllib" in rest)
    script = step.split("> wanted.txt")[0].replace("python -c", f"{sys.executable} -c", 1)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    expected = {*project["dependencies"], *extras["serve"], *extras["audio-extra"], "boto3"}
    assert set(done.stdout.splitlines()) == expected


def test_what_is_copied_is_there_and_in_the_build_context():
    """.dockerignore lets in what the steps copy, and nothing else: no data, no credentials, no .git."""
    copied = {name for rest in of("COPY") if "--from" not in rest for name in rest.split()[:-1]}
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    assert all((REPOSITORY / name).exists() for name in copied)


def test_the_packages_of_the_project_are_all_copied():
    """A package that pyproject installs and the image lacks would be missed on a worker."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= {name for rest in of("COPY") for name in rest.split()}
