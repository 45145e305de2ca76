# make demo    trains one network twice, at full size and in stages that a search decides, and compares them
# make test    format, lint, types, and the tests that every change pays for
# make test-all    the same with all tests, once with the lowest versions that are allowed and once with the newest
# They create .venv and install into it; nothing is reinstalled until the packaging changes.

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
# Test processes share the cores among themselves, so each computes with one thread.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -lt 4 ] && echo $$n || echo 4)
PYTEST_ARGS ?=
PACKAGING := pyproject.toml setup.py

# All tests, and more random examples of each.
PYTEST_ALL = OMP_NUM_THREADS=1 PROGC_TEST_PROFILE=all $(1)/bin/pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

.PHONY: demo test test-all test-lowest test-newest lint format tree types pytest pytest-all clean

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
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m 'not slow' $(PYTEST_ARGS)

# Before a release, and at the end of larger work: takes an hour or two on two cores.
test-all: lint types pytest-all test-lowest test-newest

pytest-all: .venv/.dev
	$(call PYTEST_ALL,.venv)

# Environments of their own, resolved from the package index: tests/lowest.txt holds the lower bounds of pyproject.toml.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --disable-pip-version-check --upgrade -c tests/lowest.txt -e '.[dev]'
	$(call PYTEST_ALL,.venv-lowest)

test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev]'
	$(call PYTEST_ALL,.venv-newest)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: $(PACKAGING) | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check -e '.[demo]'
	@touch $@

.venv/.dev: $(PACKAGING) | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check -e '.[dev]'
	@touch $@ .venv/.demo

clean:
	rm -rf .venv-lowest .venv-newest build dist .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
