# `make` lists the targets. Each sets up what it needs: Python >= 3.10 and make are enough to begin with.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup fit test quick lint types docs notebooks clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY)  ## make .venv with the package and its development tools

# uv installs several times faster than pip, which stands in where it can't be had; compiled, as pip does by itself
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv && VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --compile-bytecode -e ".[dev]" \
		|| $(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

fit: $(READY)  ## run FedDEA on the built-in scenes (again: go on, or show the result)
	$(BIN)/fedmtl fit --config experiments/scenes_dea.yaml --resume auto

test: $(READY)  ## run all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

quick: $(READY)  ## run the tests that are not marked slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(READY)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## check types
	$(BIN)/mypy

docs: $(READY)  ## write docs/reference.md anew
	$(BIN)/python docs/generate_reference.py

notebooks: $(READY)  ## run the notebooks again, with all their outputs
	$(BIN)/python notebooks/run.py

clean:  ## remove the environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
