# Two commands, each of which does all the set-up: `make demo` and `make test`.
# uv is used where it runs, Python's own venv and pip elsewhere.

PYTHON ?= python3
# A Python that was named gets an environment of its own: .venv-3.13.
VENV := .venv$(if $(filter file,$(origin PYTHON)),,-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2
# A uv that is found need not run: pyenv has one for each Python that is not in use. It is told to compile, as pip does:
# otherwise every process that a test starts would read PyTorch from its source.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
export ALLOOP_LABEL_STUDIO_VENV ?= $(CURDIR)/.cache/label-studio/venv
# Many container images forbid Python to keep compiled modules. Then every process that a test starts would compile alloop.
unexport PYTHONDONTWRITEBYTECODE
# Headless chart drawing, and no surprise from a user's own settings.
export MPLBACKEND := Agg
# Processes that have run out of tests take over some of another's: files differ by minutes.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show what there is to do.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alloop needs Python 3.11 or newer, this is " + sys.version.split()[0])'
ifneq ($(UV),)
	test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV)
	uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
else
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
endif
	@touch $@

.PHONY: setup
setup: $(STAMP) ## Make .venv with what tests and demo need; PYTHON=python3.13, also of the others, makes .venv-3.13.

.PHONY: demo
demo: $(STAMP) ## A whole project on real digits with a real Label Studio; KEEP=1 then shows its pages and Label Studio until Ctrl-C.
	$(BIN)/alloop demo $(if $(KEEP),--keep)

.PHONY: lint
lint: $(STAMP) ## Formatting, ruff, mypy, the direction of imports.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# mypy uses one core for a minute, so that the tests need not wait for it.
.PHONY: test
test: $(STAMP) ## Everything that CI checks; JOBS=4 uses four processes, each with a Label Studio of its own.
	@$(MAKE) --no-print-directory --jobs=2 lint all-tests

.PHONY: all-tests
all-tests: $(STAMP)
	$(PYTEST)

.PHONY: test-fast
test-fast: $(STAMP) ## Only the tests of single parts, without a server: a few minutes.
	$(PYTEST) tests/unit tests/contracts -m 'not slow and not label_studio and not postgresql'

.PHONY: clean
clean: ## Remove all environments and everything built.
	rm -rf .venv .venv-* .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find alloop migrations tests -name __pycache__ -prune -exec rm -rf {} +
