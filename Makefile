# Everything runs in .venv, made from pyproject.toml and constraints.txt; nothing is installed elsewhere.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# For two cores: one of three mostly waits for federations of processes, which come first.
WORKERS := -n 3 --dist worksteal
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo flower-demo test test-fast check bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       run a private federation on real text (about five minutes, two cores)"
	@echo "make flower-demo  five hospitals, a server and TLS on this machine, over Flower"
	@echo "make test       the whole suite        make test-fast  without the long ones"
	@echo "make check      ruff, mypy, import contracts, doctests"
	@echo "make bench      the benchmarks, about half an hour; tables in benchmarks/RESULTS.md"

demo: $(VENV)/demo.stamp
	$(BIN)/fedlora run examples/quickstart.toml --again

flower-demo: $(VENV)/dev.stamp
	$(BIN)/python examples/flower/try_it.py runs/flower-trial

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(WORKERS)

test-fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(WORKERS) -m "not long"

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --doctest-modules protocols accounting fedlora_priv

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/run.py --write benchmarks/RESULTS.md

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[demo]"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
