PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo dev test coverage fast lint docs docs-serve docs-figures docs-notebooks clean

demo: .make/user
	$(BIN)/ddim demo --out demo

dev: .make/dev

# A process a core, of one thread each: two threads beside another busy process wait for each other. Each process takes
# a run of tests that stand together, so that what a module sets up is set up once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal

test: .make/dev
	$(PYTEST)

# measuring it takes 1.4 times as long
coverage: .make/dev
	$(PYTEST) --cov --cov-report=term:skip-covered

fast: .make/dev
	$(PYTEST) -m fast

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

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first. On Linux the usual index has it with 15 wheels of CUDA, which a machine without a GPU has no use
# for, so that such a machine takes the build for CPUs from PyTorch's own index; what torch needs comes with the rest.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
GPU ?= $(shell if [ -e /dev/nvidia0 ] || command -v nvidia-smi >/dev/null; then echo yes; else echo no; fi)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CPU_TORCH := $(PIP) --no-deps --retries 1 --timeout 15 --index-url $(TORCH_INDEX) torch
NO_INDEX := "torch was not found at $(TORCH_INDEX); the usual index has it too, with CUDA's wheels."

.make/torch: $(BIN)/python constraints.txt
ifeq ($(shell uname)-$(GPU),Linux-no)
	$(CPU_TORCH) || { echo $(NO_INDEX); $(PIP) torch; }
else
	$(PIP) torch
endif
	@mkdir -p .make && touch $@

.make/user: .make/torch pyproject.toml constraints.txt
	$(PIP) -e .
	@mkdir -p .make && touch $@

.make/dev: .make/torch pyproject.toml constraints.txt
	$(PIP) -e ".[dev]"
	@mkdir -p .make && touch $@

.make/docs: .make/torch pyproject.toml constraints.txt
	$(PIP) -e ".[docs]"
	@mkdir -p .make && touch $@
