# `make train` and `make test` work on a fresh clone: the virtual environment is built when it is missing.
PYTHON ?= python3
RUN_DIR ?= runs/cartpole-$(shell date +%Y%m%d-%H%M%S)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: train test test-slow check clean

train: $(INSTALLED)
	$(BIN)/python -m wm_rllib train --config tune_configs/cartpole.yaml --run-dir $(RUN_DIR) --resume auto

# Two processes, each with a Ray for half of the modules that need one (tests/conftest.py).
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --timeout 3600

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# --no-deps: requirements.txt has pinned everything already.
$(INSTALLED): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	touch $@

# Runs hold results: they are not removed.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find wm_rllib tests -name __pycache__ -type d -prune -exec rm -rf {} +
