# Two commands for a fresh machine with Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow style quality refresh examples pictures reference rivals benchmark benchmark-table smoke clean

demo: $(VENV)/installed-demo
	$(BIN)/python app.py

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 2 --dist worksteal

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

style: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pictures: $(VENV)/installed-dev
	$(BIN)/python -m tools.pictures

# What the benchmark's rivals need.
rivals: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[train,benchmark]'

# Every method on the same images; what is missing in benchmarks/results is run. DATA and CHECKPOINT name folders.
benchmark: rivals
	$(BIN)/python -m benchmarks --data $(DATA) --checkpoint $(CHECKPOINT)

benchmark-table: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.tables

# The API reference, of the docstrings, into site/.
reference: $(VENV)/installed-dev
	$(BIN)/pdoc --docformat google --output-directory site $(addprefix ddad.,pipeline images_ddad features_ddad scheduling_ddad unet_ddad gaussians_ddad calibration_ddad denoising_ddad refining_ddad rendering_ddad)

# Settings and check sums of the bundled checkpoints, after the package's were changed.
refresh: $(VENV)/installed-dev
	$(BIN)/python -m tools.reading
	$(BIN)/ddad refresh $(patsubst %/model_index.json,%,$(wildcard checkpoints/*/model_index.json))

# What is found on the bundled examples is stored beside them; a test says when it is of another state of a checkpoint.
examples: $(VENV)/installed-dev
	$(BIN)/python -m tools.examples

# Trains four steps, saves, loads and predicts.
smoke: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/test_training.py

$(VENV)/installed-demo: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("ddad needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-demo
	$(BIN)/python -m pip install --quiet --editable '.[train,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
