# `make quickstart` and `make test` install everything into .venv first; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
JOBS ?= 2

.PHONY: help install quickstart notebooks test check-long lint

help:
	@echo "make install     create $(VENV) and install what pyproject.toml asks for"
	@echo "make quickstart  train both stages on built-in pictures and draw some (ARGS=... for options)"
	@echo "make notebooks   execute notebooks/*.ipynb and keep what they show"
	@echo "make test        the tests that take seconds"
	@echo "make check-long  the tests that take minutes"
	@echo "make lint        check style and formatting"

install: $(INSTALLED)

quickstart: $(INSTALLED)
	$(RUN) scripts/quickstart.py $(ARGS)

notebooks: $(INSTALLED)
	$(RUN) scripts/run_notebooks.py $(ARGS)

# The models of the tests are small: one thread each, and JOBS processes.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(JOBS) --dist loadfile $(ARGS)

check-long: $(INSTALLED)
	$(RUN) -m pytest -q -m long $(ARGS)

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# Installed again when pyproject.toml is newer; otherwise no network is needed.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "error: PYTHON: found $$($(PYTHON) --version 2>&1), expected Python 3.10 or newer;" \
			"name one with 'make PYTHON=/path/to/python3.12 ...'" >&2; exit 1; }
	@test -x $(RUN) || { echo "Creating $(VENV) ..."; $(PYTHON) -m venv $(VENV); } || { \
		echo "error: $(PYTHON) cannot create $(VENV); on Debian and Ubuntu the package" \
			"python3-venv is missing" >&2; rm -rf $(VENV); exit 1; }
	@echo "Installing into $(VENV). PyTorch with its GPU libraries is a download of some gigabytes:"
	@echo "the first time takes several minutes."
	$(RUN) -m pip install --editable ".[dev]"
	@$(RUN) -c 'import torch, torchvision; print("PyTorch", torch.__version__)' || { \
		echo "error: the installed torch and torchvision do not work together. Install a pair" \
			"from one place, for example:" >&2; \
		echo "  $(RUN) -m pip install --force-reinstall torch torchvision \\" >&2; \
		echo "      --index-url https://download.pytorch.org/whl/cpu" >&2; exit 1; }
	@touch $@
