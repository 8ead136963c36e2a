"""The layers of the packages: who may import whom, and that importing starts nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
WEB = {"fastapi", "starlette", "uvicorn", "aiohttp", "httpx"}
FORBIDDEN = {
    "tokenizer": {"lm_head", "pipelines", "ray", "polars", "pyarrow", *WEB},
    "lm_head": {"pipelines", "ray", "polars", "pyarrow", *WEB},
    "pipelines": {"tests", "deploy"},
}


def imported_packages(path):
    """Top-level names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_what_lies_below_them(package):
    """tokenizer knows nobody, lm_head knows tokenizer, pipelines knows both."""
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    for path in files:
        wrong = set(imported_packages(path)) & FORBIDDEN[package]
        assert not wrong, f"{path.relative_to(REPOSITORY)} imports {wrong}"


def test_only_one_room_imports_torchaudio():
    """The guarded import is the single door to torchaudio."""
    for package in FORBIDDEN:
        for path in (REPOSITORY / package).rglob("*.py"):
            if path.name != "torchaudio_import.py":
                assert "torchaudio" not in set(imported_packages(path)), path


def modules_after(statement):
    """Modules loaded and threads alive in a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys, threading\nprint(threading.active_count(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    threads, *modules = done.stdout.split()
    return int(threads), set(modules)


@pytest.mark.parametrize("package", ["tokenizer", "lm_head", "pipelines"])
def test_importing_starts_nothing(package):
    """No Ray, no logging set-up, no thread."""
    threads, modules = modules_after(f"import {package}, logging; assert not logging.getLogger().handlers")
    assert threads == 1
    assert not modules & {"ray", "polars", *WEB}


def test_the_namespace_needs_neither_torch_nor_ray():
    """A notebook can query tokens with polars and numpy alone."""
    _, modules = modules_after("import pipelines.polars_namespace")
    assert "polars" in modules
    assert not modules & {"torch", "ray", "tokenizer", "pyarrow"}


def test_user_input_is_never_checked_with_assert():
    """`assert` vanishes under -O; what users give is checked with typed errors."""
    for package in FORBIDDEN:
        for path in (REPOSITORY / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), path
