# Two commands need nothing but Python 3.11 and make: `make quickstart` and `make test`.
# Another Python, beside the first: make test PYTHON=python3.12 VENV=.venv312

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart

.PHONY: quickstart test lint clean

# Train a small model on synthetic scenes, evaluate it beside a classical baseline, print where the report is.
quickstart: $(VENV)/ready
	$(BIN)/python train.py --config configs/quickstart.py --workdir $(RUN)
	$(BIN)/python eval.py --workdir $(RUN) --untrained --baselines flood

# Lint, then every test.
test: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/lint-imports

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt "scikit-image>=0.25"
	touch $@

$(VENV)/ready-dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache
