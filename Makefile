# Two commands: `make demo` and `make test`. All make .venv first; nothing else is needed than Python 3.11+, make and gcc.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test slow lint install clean

demo: $(VENV)/.installed
	$(BIN)/quantone demo

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -q -m "not slow"

# Heavy sweeps: thousands of damaged files, dozens of killed jobs, clusters of several nodes.
slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p tokenizer -p lm_head -p pipelines

install: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Quantone needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: as a dependency of others, pip would take the newest build.
$(VENV)/.installed: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	$(BIN)/python -m tokenizer.engine
	touch $@

$(VENV)/.installed-dev: pyproject.toml requirements.lock | $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
