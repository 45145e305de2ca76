# make demo    a network learns real digits at full size, and progressively beside it: accuracy, time, speed-up
# make test    format, lint, types, tests
# Both create .venv and install into it; nothing is reinstalled until the packaging changes.

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
# Test processes share the cores among themselves, so each computes with one thread.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -lt 4 ] && echo $$n || echo 4)
PYTEST_ARGS ?=
PACKAGING := pyproject.toml setup.py

.PHONY: demo test lint format tree types pytest clean

demo: .venv/.demo
	$(BIN)/python examples/progressive_demo.py

test: lint types pytest

# Style, then the walls between packages (the contracts stand in pyproject.toml).
lint: .venv/.dev tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/tree && PYTHONPATH=. $(BIN)/lint-imports ../../pyproject.toml --no-logo

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Checkers see the tree as it is installed: passes/ and models/ inside progc.
tree:
	@rm -rf build/tree && mkdir -p build/tree/progc
	@ln -s $(CURDIR)/progc/* $(CURDIR)/passes $(CURDIR)/models build/tree/progc/

types: .venv/.dev tree
	cd build/tree && $(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p progc

pytest: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: $(PACKAGING) | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check -e '.[demo]'
	@touch $@

.venv/.dev: $(PACKAGING) | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check -e '.[dev]'
	@touch $@ .venv/.demo

clean:
	rm -rf build dist .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
