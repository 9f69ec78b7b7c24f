PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs docs-serve docs-figures docs-notebooks clean

demo: .make/user
	$(BIN)/ddim demo --out demo

# a process a core, of one thread each: two threads beside another busy process wait for each other
test: .make/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --cov --cov-report=term:skip-covered

lint: .make/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .make/docs
	$(BIN)/mkdocs build --strict

docs-serve: .make/docs
	$(BIN)/mkdocs serve

docs-figures: .make/docs
	for script in $(filter-out %/common.py,$(wildcard docs/figures/*.py)); do $(BIN)/python $$script || exit 1; done

docs-notebooks: .make/docs
	$(BIN)/python docs/_tools/notebooks.py

clean:
	rm -rf $(VENV) .make demo site

# torch goes first and pinned: an open range would fetch gigabytes of CUDA packages on a machine without a GPU.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch

.make/user: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@mkdir -p .make && touch $@

.make/dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@mkdir -p .make && touch $@

.make/docs: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@mkdir -p .make && touch $@
