# Needs Python 3.11 or newer, make and git; nothing else has to be done before any target.
# PYTHON picks the interpreter, JOBS the number of test processes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done; true)
JOBS ?= 2
BIN := .venv/bin

# One thread per process: on toy tensors more threads only wait for each other.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-slow test-oldest test-browser test-gpu lint wheel clean

help:
	@echo "make demo       the main job on the embedded model; writes images and maps to demo/"
	@echo "make test       lint, floors, types and the fast tests"
	@echo "make test-slow  the slow tests"
	@echo "make test-oldest the contract tests on the oldest diffusers claimed"
	@echo "make test-browser the editor in a real browser (Chromium; on Debian it is installed if it is not there)"
	@echo "make test-gpu   the tests that need a CUDA device; fails where there is none"
	@echo "make lint       ruff, import-linter and mypy only"
	@echo "make wheel      wheel and source archive in dist/"
	@echo "make clean      remove the environment and everything that was built"

# The environment is made anew when what it depends on changes; the stamps keep repeated runs from reinstalling.
.venv/stamp-core: pyproject.toml constraints.txt
	@[[ -n "$(PYTHON)" ]] && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "t2ictl needs Python 3.11 or newer; name one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making .venv with $$("$(PYTHON)" --version); this downloads packages once." >&2
	"$(PYTHON)" -m venv --clear .venv
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/stamp-dev: .venv/stamp-core
	$(BIN)/pip install --quiet -c constraints.txt -e ".[app,bench,dev,ray,tensorboard]"
	@touch $@

demo: .venv/stamp-core
	TRANSFORMERS_VERBOSITY=error $(BIN)/python -m t2ictl.cli.demo --out demo

lint: .venv/stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: .venv/stamp-dev
	$(BIN)/python -m pytest -n $(JOBS) -m slow

# The oldest diffusers claimed, laid over the same environment; httpx is its hub client's.
.venv/stamp-oldest: .venv/stamp-dev
	$(BIN)/pip install --quiet --no-deps --target .venv/oldest diffusers==0.40.0 httpx==0.28.1 httpcore==1.0.9
	@touch $@

test-oldest: .venv/stamp-oldest
	PYTHONPATH=.venv/oldest $(BIN)/python -m pytest -n $(JOBS) tests/test_tiny.py tests/processors tests/session/test_restore.py tests/attention/test_processor.py tests/families/test_loading.py

# Any Chromium will do: T2ICTL_CHROMIUM names one; else what the system has, or, on Debian, what its archive has.
test-browser: .venv/stamp-dev
	@[[ -n "$${T2ICTL_CHROMIUM:-}" ]] || command -v chromium chromium-browser google-chrome >/dev/null || \
		{ echo "Installing the system's Chromium." >&2; sudo=$$(command -v sudo || true); \
		  [[ "$$(id -u)" == 0 ]] && sudo=; \
		  $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq chromium >/dev/null; }
	$(BIN)/python -m pytest -m browser tests/browser

test-gpu: .venv/stamp-dev
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make test-gpu: no CUDA device here")'
	$(BIN)/python -m pytest -m gpu tests

wheel: .venv/stamp-dev
	rm -rf build dist
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf .venv build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
