# kinema: `make demo` and `make test` work on a fresh machine; each sets up what is missing by itself.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.kinema-setup
# Tests are many small programs: one thread each, two at a time, is faster than two threads for one at a time.
TEST_ENV := OMP_NUM_THREADS=1
# Waiting threads sleep instead of spinning, see src/kinema/machine.py.
export OMP_WAIT_POLICY ?= PASSIVE
WORKERS ?= 2

.PHONY: help setup lock demo test test-oldest test-newest test-slow fuzz benchmarks embedded gpu-check lint format clean

help:
	@echo "make setup      a virtual environment in $(VENV), with kinema and its tools, as constraints.txt says"
	@echo "make lock       constraints.txt anew; OPTIONS=--upgrade takes the newest versions"
	@echo "make demo       clips from prompts and from an image, into demo/"
	@echo "make test       lint, types and tests"
	@echo "make test-oldest, make test-newest  the tests with the oldest and the newest versions of everything"
	@echo "make test-slow  the tests that take minutes, or a GPU"
	@echo "make fuzz       1,000 damaged files and odd words for the command line; SEED=1 COUNT=5000 for others"
	@echo "make benchmarks the tables of docs/benchmarks.md that need no videos: an hour or two"
	@echo "make embedded   train the embedded model anew, MINUTES=6.5 of training; OPTIONS='--sprites sprites/'"
	@echo "make gpu-check  is kinema right on this GPU, and how fast? four minutes; tiny sizes on a CPU"
	@echo "make lint       lint and types alone"
	@echo "make format     let ruff put the code in order"
	@echo "make clean      remove what building and testing left; the environment stays"

setup: $(STAMP)

# The versions of constraints.txt: what is installed today is installed tomorrow, and on other machines.
$(STAMP): pyproject.toml constraints.txt scripts/environment.sh
	@sh scripts/environment.sh $(VENV) locked
	@touch $@

# Options go to uv: make lock OPTIONS="--upgrade-package torch"
lock:
	@sh scripts/lock.sh $(OPTIONS)

demo: $(STAMP)
	@$(PYTHON) -m kinema.apps.demo --out-dir demo --overwrite

lint: $(STAMP)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/pyright

test: lint
	@$(TEST_ENV) $(PYTHON) -m pytest -q -n $(WORKERS)

# The oldest versions that pyproject.toml allows, and the newest that there are, in environments of their own.
test-oldest test-newest: test-%:
	@sh scripts/environment.sh .venv-$* $*
	@.venv-$*/bin/python scripts/versions.py
	@$(TEST_ENV) .venv-$*/bin/python -m pytest -q -n $(WORKERS)

test-slow: $(STAMP)
	@$(TEST_ENV) $(PYTHON) -m pytest -q -m "slow or cuda"

SEED ?= 0
COUNT ?= 1000
fuzz: $(STAMP)
	@PYTHONPATH=tests/helpers $(PYTHON) -m fuzz --seed $(SEED) --count $(COUNT) --jobs $(WORKERS)

BENCHMARKS ?= tokenizer_speed tokenizer_streaming fvd_speed sparse_attention sparse_plugin
benchmarks: $(STAMP)
	@for name in $(BENCHMARKS); do echo "# $$name"; $(PYTHON) benchmarks/$$name.py || exit 1; done

MINUTES ?= 6.5
embedded: $(STAMP)
	@$(PYTHON) training/train_embedded.py --output runs/embedded --minutes $(MINUTES) $(OPTIONS)

gpu-check: $(STAMP)
	@$(PYTHON) benchmarks/gpu_check.py $(OPTIONS)

format: $(STAMP)
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

clean:
	@rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv*/*' -prune -exec rm -rf {} +
