# Everything is installed into .venv of this folder; no system package is needed. `make PYTHON=python3.12 demo` picks
# another interpreter. pip's own settings (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS ...) work as usual: point them at
# PyTorch's CPU wheels if you have no GPU and want the small download.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup demo test test-slow test-gpu check bench pusht-64 clean

help:
	@echo "make demo    imagine Push-T with the shipped model (sets everything up first)"
	@echo "make test    run the tests"
	@echo "make test-slow  run the tests that take minutes each: the recipe of the shipped model, in small"
	@echo "make test-gpu  run the tests of sessions, training and environments on a GPU"
	@echo "make check   lint, types and architecture"
	@echo "make bench   measure speed against a reference"
	@echo "make pusht-64  train the shipped model again, from nothing (hours)"
	@echo "make setup   install into $(VENV), nothing else"
	@echo "make clean   remove $(VENV) and caches"

setup: $(VENV)/.installed
	@echo "Ready: $(BIN)/ivideogpt --help"

demo: $(VENV)/.installed
	$(BIN)/ivideogpt demo --overwrite

bench: $(VENV)/.installed-dev
	$(BIN)/ivideogpt bench

pusht-64: $(VENV)/.installed
	PYTHON=$(BIN)/python bash recipes/pusht_64.sh

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q tests/session tests/training tests/envs tests/test_inference.py --device cuda

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps: newer than pyproject.toml and constraints.txt means nothing is left to install.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV); the first time takes a few minutes."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what developing needs into $(VENV)."
	$(INSTALL) --editable '.[dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "$(PYTHON) is not Python 3.11 or 3.12. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
