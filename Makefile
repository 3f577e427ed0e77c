# The commands of this repository; `make help` lists them. docs/install.md has the details.

# An index that has CPU wheels of torch, which is asked besides the indexes of pip's configuration. Empty: ask only those.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# The interpreter that .venv is made from.
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
# Arguments that train, test, test-unit, chaos and doctor pass on: make train ARGS="--set learner.lr=1e-5"
ARGS ?=
# Where `make lock` finds torch: uv's name for PyTorch's CPU index, or "--find-links DIR", "--index URL", ...
LOCK_FLAGS ?= --torch-backend cpu

# How tests that start neither Ray nor an engine run: one process per core, four at most. SIDE_BY_SIDE= runs them in one, in order.
SIDE_BY_SIDE ?= -n logical --maxprocesses 4 --dist worksteal

UV_VERSION := 0.13.9
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps
PACKAGES := actors bonus buffers jobs learners tasks

.DEFAULT_GOAL := help
.PHONY: help venv train test test-unit chaos lint format docs reasoning-gym s3 lock doctor clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: .venv/cpu.lock  ## make .venv from requirements/cpu.lock (instant when it is up to date)

train: venv  ## train on the embedded model and tasks: configs/quickstart.toml (ARGS are passed on)
	$(BIN)/python -m jobs.train configs/quickstart.toml $(ARGS)

test: venv  ## run every test this machine can run, except those that take minutes each (ARGS are passed on)
	$(BIN)/python -m pytest -m "not ray and not engine and not long" $(SIDE_BY_SIDE) $(ARGS) || [ $$? -eq 5 ]
	$(BIN)/python -m pytest -m "(ray or engine) and not long" $(ARGS) || [ $$? -eq 5 ]

test-unit: venv  ## run the tests that need neither Ray nor vLLM nor a whole run
	$(BIN)/python -m pytest -m "not ray and not engine and not whole and not chaos and not long" $(SIDE_BY_SIDE) $(ARGS)

chaos: venv  ## run the tests that inject faults into whole runs, those that take minutes too
	$(BIN)/python -m pytest -m "chaos or long" $(ARGS)

lint: venv  ## check format, lint, direction of imports, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: venv  ## format the code and apply the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: venv  ## write docs/configuration.md from the code
	$(BIN)/python -m jobs.screens.config_keys docs/configuration.md

doctor:  ## say what this machine has, what is missing and how to fix it (with or without .venv)
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m jobs.doctor $(ARGS)

# The copy of the lock inside .venv says what was installed. It is written last, so an interrupted build starts from the beginning.
.venv/cpu.lock: requirements/cpu.lock
	@if cmp -s $< $@; then touch $@; else $(MAKE) --no-print-directory .venv-build; fi

.PHONY: .venv-build
.venv-build:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit("make venv: the lock is for Python 3.11 and $(PYTHON) is %d.%d: make venv PYTHON=python3.11" % v)'
	@echo "making .venv from requirements/cpu.lock (3.2 GiB, a few minutes)"
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) --retries 1 --timeout 30 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements/cpu.lock)" \
		|| { echo "make venv: no wheel of torch could be had: make venv TORCH_INDEX=URL-of-an-index-with-CPU-wheels" >&2; exit 1; }
	@$(BIN)/python -c 'import pathlib, runpy, sys; f = pathlib.Path(sys.prefix) / "lib/python3.11/site-packages/torch/version.py"; sys.exit(runpy.run_path(str(f))["cuda"] is not None)' \
		|| { echo "make venv: pip found a CUDA build of torch: make venv TORCH_INDEX=URL-of-an-index-with-CPU-wheels (docs/install.md)" >&2; exit 1; }
	@$(PIP) -r requirements/cpu.lock
	@$(BIN)/python -c 'import torch' || { echo "make venv: torch does not import (see above): rm -rf .venv && make venv" >&2; exit 1; }
	@cp requirements/cpu.lock .venv/cpu.lock

reasoning-gym: venv  ## add what the optional task reasoning-gym needs to .venv (a C compiler is needed)
	@$(PIP) --no-build-isolation -r requirements/reasoning-gym.txt

s3: venv  ## add a local S3 server to .venv, for the tests of checkpoints
	@$(PIP) -r requirements/s3.txt

lock: .uv/bin/uv  ## resolve requirements/cpu.in into requirements/cpu.lock with the newest versions that fit
	@$< pip compile requirements/cpu.in --override requirements/overrides.txt --upgrade --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --no-annotate --no-header --quiet --output-file .uv/cpu.lock $(LOCK_FLAGS) >/dev/null
	@{ echo '# Linux x86_64, Python 3.11. Written by `make lock` from cpu.in and overrides.txt; install with `pip install --no-deps`.'; \
		sed 's/^\(torch==[^+]*\)+cpu$$/\1/' .uv/cpu.lock; } > requirements/cpu.lock
	@git --no-pager diff --stat -- requirements/cpu.lock 2>/dev/null || true

.uv/bin/uv:
	@$(PYTHON) -m venv --clear .uv
	@.uv/bin/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)

clean:  ## remove .venv and every cache here; runs/ stays
	rm -rf .venv .uv .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
