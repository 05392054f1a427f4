# kinema: `make demo` and `make test` work on a fresh machine; each sets up what is missing by itself.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.kinema-setup
# Tests are many small programs: one thread each, two at a time, is faster than two threads for one at a time.
TEST_ENV := OMP_NUM_THREADS=1
# Waiting threads sleep instead of spinning, see src/kinema/machine.py.
export OMP_WAIT_POLICY ?= PASSIVE
WORKERS ?= 2

.PHONY: help setup demo test test-slow benchmarks lint format clean

help:
	@echo "make setup      a virtual environment in $(VENV), with kinema and its tools"
	@echo "make demo       clips from prompts and from an image, into demo/"
	@echo "make test       lint, types and tests"
	@echo "make test-slow  the tests that take minutes, or a GPU"
	@echo "make benchmarks the tables of docs/benchmarks.md that need no videos: an hour or two"
	@echo "make lint       lint and types alone"
	@echo "make format     let ruff put the code in order"
	@echo "make clean      remove what building and testing left; the environment stays"

setup: $(STAMP)

# Any Python >= 3.11 that can make a virtual environment will do.
$(STAMP): pyproject.toml
	@if [ ! -x $(PYTHON) ]; then \
		for candidate in python3 python3.13 python3.12 python3.11 python; do \
			if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				found=$$candidate; break; \
			fi; \
		done; \
		if [ -z "$$found" ]; then echo "kinema needs Python >= 3.11 with the venv module, and found none" >&2; exit 1; fi; \
		echo "Making $(VENV) with $$($$found --version)"; \
		$$found -m venv $(VENV) || exit 1; \
	fi
	@echo "Installing kinema and what it needs into $(VENV): some minutes the first time"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -e ".[test,lint]"
	@touch $@

demo: $(STAMP)
	@$(PYTHON) -m kinema.apps.demo --out-dir demo --overwrite

lint: $(STAMP)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/pyright

test: lint
	@$(TEST_ENV) $(PYTHON) -m pytest -q -n $(WORKERS)

test-slow: $(STAMP)
	@$(TEST_ENV) $(PYTHON) -m pytest -q -m "slow or cuda"

BENCHMARKS ?= tokenizer_speed tokenizer_streaming fvd_speed sparse_attention sparse_plugin
benchmarks: $(STAMP)
	@for name in $(BENCHMARKS); do echo "# $$name"; $(PYTHON) benchmarks/$$name.py || exit 1; done

format: $(STAMP)
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

clean:
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
