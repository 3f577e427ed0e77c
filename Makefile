# The commands of this repository; `make help` lists them. docs/install.md has the details.

# An index that has CPU wheels of torch, which is asked besides the indexes of pip's configuration. Empty: ask only those.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# The versions of Python that the lock is for, newest first.
PYTHONS := 3.13 3.12 3.11
# The interpreter that $(VENV) is made from: the newest of them that is here and can make an environment.
PYTHON ?= $(shell for v in $(PYTHONS); do python$$v -c 'import ensurepip' 2>/dev/null && echo python$$v && exit; done; echo python3)
# The environment. With another one and PYTHON=, everything below works for a second version of Python.
VENV ?= .venv
# Arguments that train, compare, test, test-unit, chaos and doctor pass on: make train ARGS="--set learner.lr=1e-5"
ARGS ?=
# Where `make lock` finds torch: uv's name for PyTorch's CPU index, or "--find-links DIR", "--index URL", ...
LOCK_FLAGS ?= --torch-backend cpu

# How tests that start neither Ray nor an engine run: one process per core, four at most. SIDE_BY_SIDE= runs them in one, in order.
SIDE_BY_SIDE ?= -n logical --maxprocesses 4 --dist worksteal

UV_VERSION := 0.13.9
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps
PACKAGES := actors bonus buffers jobs learners tasks

.DEFAULT_GOAL := help
.PHONY: help venv train compare test test-unit chaos lint format docs reasoning-gym wandb s3 lock doctor clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(BIN)/repexp  ## make .venv from requirements/cpu.lock, with the command repexp (instant when it is up to date)

train: venv  ## train on the embedded model and tasks: configs/quickstart.toml (ARGS are passed on)
	$(BIN)/python -m jobs.train configs/quickstart.toml $(ARGS)

compare: venv  ## compare GRPO with the default over two seeds: configs/compare/first.toml, half an hour (ARGS are passed on)
	$(BIN)/python -m jobs.compare configs/compare/first.toml $(ARGS)

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

# The command and the packages, as links to this clone. In the editable mode "compat" the clone is one entry of sys.path, at its end:
# a clone or a work tree that is the current directory, or in PYTHONPATH, comes before it.
$(BIN)/repexp: pyproject.toml $(VENV)/cpu.lock
	@$(PIP) --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $@

# The copy of the lock inside the environment says what was installed. It is written last, so an interrupted build starts from the beginning.
$(VENV)/cpu.lock: requirements/cpu.lock
	@if cmp -s $< $@; then touch $@; else $(MAKE) --no-print-directory .venv-build; fi

.PHONY: .venv-build
.venv-build:
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1:])' $(PYTHONS) 2>/dev/null || { \
		echo "make venv: $(PYTHON) is none of Python $(PYTHONS) with the module venv: apt install python3-venv, or make venv PYTHON=/path/to/one" >&2; exit 1; }
	@echo "making $(VENV) from requirements/cpu.lock (3.2 GiB, a few minutes)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --retries 1 --timeout 30 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements/cpu.lock)" \
		|| { echo "make venv: no wheel of torch could be had: make venv TORCH_INDEX=URL-of-an-index-with-CPU-wheels" >&2; exit 1; }
	@$(BIN)/python -c 'import pathlib, runpy, importlib.util as u; f = pathlib.Path(u.find_spec("torch").origin).with_name("version.py"); exit(runpy.run_path(str(f))["cuda"] is not None)' \
		|| { echo "make venv: pip found a CUDA build of torch: make venv TORCH_INDEX=URL-of-an-index-with-CPU-wheels (docs/install.md)" >&2; exit 1; }
	@$(PIP) -r requirements/cpu.lock
	@$(BIN)/python -c 'import torch' || { echo "make venv: torch does not import (see above): rm -rf $(VENV) && make venv" >&2; exit 1; }
	@cp requirements/cpu.lock $(VENV)/cpu.lock

reasoning-gym: venv  ## add what the optional task reasoning-gym needs to .venv (a C compiler is needed)
	@$(PIP) --no-build-isolation -r requirements/reasoning-gym.txt

wandb: venv  ## add what the optional tracker wandb needs to .venv
	@$(PIP) -r requirements/wandb.txt

s3: venv  ## add a local S3 server to .venv, for the tests of checkpoints
	@$(PIP) -r requirements/s3.txt

RESOLVE = .uv/bin/uv pip compile requirements/cpu.in --override requirements/overrides.txt --python-platform x86_64-manylinux_2_28 \
	--no-annotate --no-header --quiet $(LOCK_FLAGS)
OLDEST := $(lastword $(PYTHONS))

lock: .uv/bin/uv  ## resolve requirements/cpu.in into requirements/cpu.lock with the newest versions that fit
	@$(RESOLVE) --upgrade --python-version $(OLDEST) --output-file .uv/cpu.lock >/dev/null
	@for v in $(PYTHONS); do cp .uv/cpu.lock .uv/$$v.lock && $(RESOLVE) --python-version $$v --output-file .uv/$$v.lock >/dev/null \
		&& diff .uv/cpu.lock .uv/$$v.lock || { \
		echo "make lock: Python $$v needs other versions than Python $(OLDEST) (see above): bound them in requirements/cpu.in" >&2; exit 1; }; done
	@{ echo '# Linux x86_64, Python $(PYTHONS). Written by `make lock` from cpu.in and overrides.txt; install with `pip install --no-deps`.'; \
		sed 's/^\(torch==[^+]*\)+cpu$$/\1/' .uv/cpu.lock; } > requirements/cpu.lock
	@git --no-pager diff --stat -- requirements/cpu.lock 2>/dev/null || true

.uv/bin/uv:
	@$(PYTHON) -m venv --clear .uv
	@.uv/bin/python -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION)

clean:  ## remove .venv and every cache here; runs/ stays
	rm -rf .venv .uv .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
