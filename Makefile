# Every target works from a bare clone: it needs make, python3 (3.11 or newer) and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
COMMA := ,

.DEFAULT_GOAL := help
.PHONY: help setup train sweep report test bench lint lock tensorboard clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## the virtual environment with the pinned packages

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --seed --python $(PYTHON) $(VENV); \
	else \
		$(PYTHON) -m venv $(VENV) || { echo "error: no venv module; on Debian: apt-get install python3-venv"; exit 1; }; \
	fi
	@echo "installing the pinned packages into $(VENV) (several GB the first time, a few minutes)"
	@if command -v uv >/dev/null; then \
		VIRTUAL_ENV=$(VENV) uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

train: $(READY) ## train the default Transformer; ARGS="model=rnn optimizer.lr=1e-3" changes anything
	$(BIN)/python scripts/train.py $(ARGS)

sweep: $(READY) ## many runs, four combinations for a start; ARGS="sweep=optuna model=rnn …" sweeps anything
	$(BIN)/python scripts/train.py -m $(or $(ARGS),model=mlp optimizer.lr=1e-3$(COMMA)3e-3 model.dropout=0$(COMMA)0.2)

report: $(READY) ## the newest sweep's report anew; ARGS="runs='outputs/mlp-*/*'" reports any runs
	$(BIN)/python scripts/report.py $(ARGS)

test: $(READY) ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

bench: $(READY) ## speed beside peers, about 12 minutes, into benchmarks/results.md
	$(BIN)/python benchmarks/bench.py

lint: $(READY) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

lock: ## requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra dev pyproject.toml -o requirements.lock

tensorboard: $(READY) ## curves, figures and hyperparameters at http://localhost:6006; RUNS=outputs/sweeps/… of some runs only
	$(BIN)/tensorboard --logdir '$(or $(RUNS),$(QUARTET_OUTPUTS),outputs)' $(ARGS)

clean: ## remove caches and the virtual environment; runs in outputs/ stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
