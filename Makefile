# Every target sets up what it needs: Python 3.11 or newer is all that must be there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
LOWEST := .venv-lowest
NEWEST := .venv-newest
TESTS  ?=

.PHONY: demo test test-lowest test-newest newest constraints bench soak check format docs dist clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@

demo: $(READY)          ## the whole story on letters, in under two minutes
	$(BIN)/logitcache demo

test: $(READY)          ## the test suite, or TESTS=PATHS, at the versions of constraints.txt
	$(BIN)/python -m pytest $(TESTS)

test-lowest: $(LOWEST)/.ready  ## the same at the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest $(TESTS)

test-newest: newest     ## the same at the newest versions
	$(NEWEST)/bin/python -m pytest $(TESTS)

# On Python 3.11 (PYTHON=…): not all of these versions have wheels for Python 3.13.
$(LOWEST)/.ready: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --editable '.[dev]' --constraint $(LOWEST)/constraints.txt
	touch $@

newest:
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'

# uv keeps the versions that it finds in the file, and adds what other systems and other extras take.
EXACT := $(NEWEST)/constraints.txt
constraints: newest     ## constraints.txt anew, of the newest versions: run the tests before and after
	$(NEWEST)/bin/python -m pip install --quiet --upgrade uv
	$(NEWEST)/bin/python -m pip freeze --all --exclude-editable > $(EXACT)
	$(NEWEST)/bin/uv pip compile --quiet --universal --all-extras --no-header --no-annotate -o $(EXACT) pyproject.toml
	(grep '^#' constraints.txt; grep -Ev '^(nvidia|cuda)-|^triton=' $(EXACT)) > $(EXACT).cut
	mv $(EXACT).cut constraints.txt

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
	$(BIN)/python -m pip install --quiet --editable '.[docs]' --constraint constraints.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(READY)          ## wheel and sdist
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) $(LOWEST) $(NEWEST) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
