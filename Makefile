# `make quickstart` and `make test` install everything into .venv first; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
JOBS ?= 2

.PHONY: help install quickstart publish notebooks test check-long lint

help:
	@echo "make install     create $(VENV) and install what pyproject.toml asks for"
	@echo "make quickstart  train both stages on built-in panoramas, sample, measure, report;"
	@echo "                 goes on where it stopped (FRESH=1: start over, TINY=1: untrained, for tests)"
	@echo "make publish     copy the figures and images of a quickstart to docs/"
	@echo "make notebooks   execute notebooks/*.ipynb on the quickstart's models, in place"
	@echo "make test        the tests that take seconds"
	@echo "make check-long  the tests that take minutes"
	@echo "make lint        check style, formatting and types"

install: $(INSTALLED)

# --- The quickstart: each step is a script with the config of configs/quickstart, and leaves a file.
# A step that was stopped goes on from its last checkpoint, or with the images that are missing.

ifdef TINY
RUN ?= runs/tiny
TOKENIZER_ARGS := model.params.ddconfig.ch=8 model.params.ddconfig.z_channels=4 \
	data.params.train.params.length=64 data.params.validation.params.length=9 \
	lightning.trainer.max_epochs=1 lightning.trainer.log_every_n_steps=1
LATENTS_ARGS := data.params.train.params.length=64
GENERATOR_ARGS := --epochs 2 --width 32 --depth 2 --heads 2 --diffloss_w 32 --diffloss_d 1 --log_freq 1
SAMPLES_ARGS := --num_images 18 --num_sampling_steps 4
STRIPS_ARGS := --num_sampling_steps 2 --token_num 64
METRICS_ARGS := --unseen 18 --lessons 36
else
RUN ?= runs/quickstart
endif
CONFIGS := configs/quickstart
STAGE_TWO = --config_path $(CONFIGS)/stage_two.yaml model.params.ckpt_path=$(RUN)/tokenizer.ckpt
RUN_OF_STAGE_ONE = $$(ls -d $(RUN)/logs/*_tokenizer | tail -1)

quickstart: $(INSTALLED)
	$(if $(FRESH),rm -rf $(RUN))
	@$(MAKE) --no-print-directory $(RUN)/report.html
	@echo "report: $(RUN)/report.html"

$(RUN)/started:
	mkdir -p $(RUN) && touch $@

$(RUN)/tokenizer.ckpt: | $(RUN)/started
	if [ -e $(RUN)/logs/*_tokenizer/checkpoints/last.ckpt ]; \
	then $(PY) scripts/train_tokenizer.py -t True -r $(RUN_OF_STAGE_ONE) $(TOKENIZER_ARGS); \
	else rm -rf $(RUN)/logs && $(PY) scripts/train_tokenizer.py -t True -b $(CONFIGS)/tokenizer.yaml \
		-n tokenizer -l $(RUN)/logs -s 0 $(TOKENIZER_ARGS); fi
	cp $(RUN_OF_STAGE_ONE)/checkpoints/last.ckpt $@.tmp && mv $@.tmp $@

$(RUN)/latents.safetensors: $(RUN)/tokenizer.ckpt
	$(PY) scripts/cache_latents.py $(STAGE_TWO) --cached_path $@ $(LATENTS_ARGS)

$(RUN)/generator.done: $(RUN)/latents.safetensors
	$(PY) scripts/train_generator.py --config $(CONFIGS)/generator.yaml $(STAGE_TWO) \
		--use_cached --cached_path $< --output_dir $(RUN)/generator --resume $(RUN)/generator \
		$(GENERATOR_ARGS)
	touch $@

$(RUN)/samples.done: $(RUN)/generator.done
	$(PY) scripts/eval_generator.py --config $(CONFIGS)/samples.yaml $(STAGE_TWO) \
		--resume $(RUN)/generator --output_dir $(RUN)/samples $(SAMPLES_ARGS)
	touch $@

$(RUN)/strips.done: $(RUN)/samples.done
	$(PY) scripts/eval_generator.py --config $(CONFIGS)/panoramas.yaml $(STAGE_TWO) \
		--resume $(RUN)/generator --output_dir $(RUN)/strips $(STRIPS_ARGS)
	touch $@

$(RUN)/metrics.json: $(RUN)/strips.done
	$(PY) scripts/quickstart_metrics.py $(RUN) $(METRICS_ARGS)

NBCONVERT = QUICKSTART_RUN=$(abspath $(RUN)) $(PY) -m nbconvert --log-level WARN --execute

$(RUN)/report.html: $(RUN)/metrics.json
	$(NBCONVERT) --to html --no-input --embed-images --HTMLExporter.mathjax_url= \
		--HTMLExporter.require_js_url= --HTMLExporter.jquery_url= notebooks/quickstart.ipynb \
		--output-dir $(RUN) --output report

publish: $(RUN)/metrics.json
	cp $(RUN)/metrics.json docs/results/quickstart.json
	cp $(RUN)/samples.png $(RUN)/reconstructions.png $(RUN)/token_meaning.gif docs/images/
	cp $(RUN)/strips.png docs/images/panorama.png

notebooks: $(RUN)/metrics.json
	$(NBCONVERT) --to notebook --inplace --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

# --- Checks

# The models of the tests are small: one thread each, and JOBS processes.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --dist loadfile $(ARGS)

check-long: $(INSTALLED)
	$(PY) -m pytest -q -m long $(ARGS)

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# --- Installation: again when pyproject.toml is newer; otherwise no network is needed.

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "error: PYTHON: found $$($(PYTHON) --version 2>&1), expected Python 3.10 or newer;" \
			"name one with 'make PYTHON=/path/to/python3.12 ...'" >&2; exit 1; }
	@test -x $(PY) || { echo "Creating $(VENV) ..."; $(PYTHON) -m venv $(VENV); } || { \
		echo "error: $(PYTHON) cannot create $(VENV); on Debian and Ubuntu the package" \
			"python3-venv is missing" >&2; rm -rf $(VENV); exit 1; }
	@echo "Installing into $(VENV). PyTorch with its GPU libraries is a download of some gigabytes:"
	@echo "the first time takes several minutes."
	$(PY) -m pip install --editable ".[dev]"
	@$(PY) -c 'import torch, torchvision; print("PyTorch", torch.__version__)' || { \
		echo "error: the installed torch and torchvision do not work together. Install a pair" \
			"from one place, for example:" >&2; \
		echo "  $(PY) -m pip install --force-reinstall torch torchvision \\" >&2; \
		echo "      --index-url https://download.pytorch.org/whl/cpu" >&2; exit 1; }
	@touch $@
