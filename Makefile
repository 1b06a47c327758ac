# Every target sets up what it needs: Python 3.11 or newer is all that must be there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test bench soak check format docs dist clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY)          ## the whole story on real digits, in under two minutes
	$(BIN)/logitcache demo

test: $(READY)          ## the test suite
	$(BIN)/python -m pytest

bench: $(READY)         ## every suite of `logitcache bench`
	$(BIN)/logitcache bench all

SECONDS ?= 180
SEED    ?= 0
soak: $(READY)          ## faults of every kind, counted: kill, power, full disk, flips, fuzz; SECONDS=…, SEED=…
	PYTHONPATH=tests:tests/support $(BIN)/python -W ignore:resource_tracker -m soak --seconds $(SECONDS) --seed $(SEED)

check: $(READY)         ## lint, format, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest --numprocesses=0 tests/test_design.py

format: $(READY)        ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)          ## the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(READY)          ## wheel and sdist
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
