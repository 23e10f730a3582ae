# `make help` lists what there is to do. Everything lands in .venv and runs/; only `make slurm` and `make images` need root.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup train test slurm checks lint docs backbone peers images bench-quick results lock clean
PYTHON ?= python3
export PYTHON
RUN := .venv/bin/python
PYTEST_ARGS ?=

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup:  ## make the virtual environment .venv, or bring it up to date
	@scripts/setup.sh

train: setup  ## books -> shards -> training on 2 processes -> checkpoint -> export -> generated text
	@$(RUN) -m launch.quickstart

test: setup  ## run every test, on all cores (PYTEST_ARGS="-k local -x" for some)
	@echo "test: running the whole suite"
	@$(RUN) -m pytest -n auto $(PYTEST_ARGS)

slurm:  ## install Debian's Slurm for tests/slurm, which skip without it (root)
	@scripts/install_debian.sh slurm slurmctld slurmd slurm-client munge util-linux iproute2

docs: setup  ## the pages and the reference of the packages as a site, build/docs/docs/index.html
	@$(RUN) -m sphinx -q -W --keep-going -c docs . build/docs -d build/docs-trees
	@echo "docs: build/docs/docs/index.html"

lint: setup  ## ruff (lint and format) and mypy
	@echo "lint: ruff check, ruff format, mypy"
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --check --quiet . || { echo "lint: format with: $(RUN) -m ruff format ." >&2; exit 1; }
	@$(RUN) -m mypy

checks: lint  ## lint, then the fast tests: before every commit
	@echo "checks: running the fast tests"
	@$(RUN) -m pytest -q -n auto -m "not slow and not distributed and not slurm and not gpu" $(PYTEST_ARGS)

backbone: setup  ## a small pretrained model (SmolLM2-135M) for model.pretrained, in models/smollm2-135m
	@$(RUN) -m launch.backbone

peers: setup  ## install the architectures that benchmarks/ compares with (torch stays as it is)
	@echo "peers: installing requirements/peers.txt"
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-deps -r requirements/peers.txt
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-deps --upgrade --target .venv/namesake memformer==0.3.1

images:  ## install Debian's Fashion-MNIST for benchmarks/pixels.py (root)
	@scripts/install_debian.sh images dataset-fashion-mnist

bench-quick: peers  ## a small version of every benchmark, in ten minutes at most; results in runs/bench-quick
	@$(MAKE) --no-print-directory images || echo "images: not installed; benchmarks/pixels.py is not run"
	@$(RUN) benchmarks/quick.py

results:  ## write docs/results and the README's table anew from benchmarks/results
	@$(RUN) benchmarks/results_pages.py
	@$(RUN) benchmarks/readme_table.py

lock:  ## resolve the pinned packages anew (requirements/lock.txt, uv.lock)
	@scripts/lock.sh

clean:  ## remove .venv and the caches; runs stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
