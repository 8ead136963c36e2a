"""The sub-packages of `pipelines` form layers: each imports rooms of those below it, and of none beside or above it."""

import ast
from pathlib import Path

import pytest

PIPELINES = Path(__file__).parents[2] / "pipelines"
LEVELS = (  # the lowest first; "pipelines" stands for the rooms that lie in no sub-package
    ("pipelines",),
    ("datasets", "recordings"),
    ("decoding", "inputs"),
    ("corpus", "evaluating", "exporting", "reporting", "serving"),
    ("benchmarking", "clients", "training"),
    ("commands",),
)
PACKAGES = [package for level in LEVELS for package in level]
DOORS = ("__init__", "cli")  # the two rooms at the top that may open any other


def level_of(package):
    """How high it lies."""
    return next(number for number, level in enumerate(LEVELS) if package in level)


def rooms_of(package):
    """Its files."""
    folder = PIPELINES if package == "pipelines" else PIPELINES / package
    return [path for path in sorted(folder.glob("*.py")) if package != "pipelines" or path.stem not in DOORS]


def packages_imported(path):
    """Sub-packages whose rooms a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for first, second, *_ in (name.split(".") for name in names if name.startswith("pipelines.")):
            yield second if second in PACKAGES else first


def test_every_sub_package_has_its_level():
    """A new folder of rooms is put into the order, and one that is gone is taken out."""
    folders = {path.parent.name for path in PIPELINES.glob("*/__init__.py")}
    assert folders == set(PACKAGES) - {"pipelines"}


@pytest.mark.parametrize("package", PACKAGES)
def test_sub_packages_import_only_what_lies_below_them(package):
    """So that each can be read, tested and changed without those above it."""
    rooms = rooms_of(package)
    assert rooms
    for path in rooms:
        for other in set(packages_imported(path)) - {package}:
            assert level_of(other) < level_of(package), f"{path.relative_to(PIPELINES)} imports of {other}"
