# Two commands do all their own set-up: `make demo` (the whole job on drawn slides) and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test torture lint docs wheel install install-dev clean

demo: $(VENV)/.installed
	$(BIN)/simtriplet demo --out demo

test: $(VENV)/.installed-dev
	$(BIN)/pytest -n auto --dist worksteal

# Kills, full disks, damaged and hostile files, many times over; hours. `make torture FAULTS=20 FUZZ=2000` is what `make test` does.
FAULTS  ?= 200
FUZZ    ?= 20000
TORTURE := tests/faults tests/fuzz tests/test_security.py tests/evaluate/test_hostile_names.py \
           tests/pretrain/test_nan_faults.py tests/pretrain/test_safeguards.py tests/pretrain/test_streaming_memory.py

torture: $(VENV)/.installed-dev
	@echo "killing each command $(FAULTS) times and trying $(FUZZ) damaged files of each kind"
	SIMTRIPLET_FAULTS=$(FAULTS) SIMTRIPLET_FUZZ=$(FUZZ) $(BIN)/pytest -n auto --dist worksteal --durations=20 -rfEsP --tb=short $(TORTURE)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

# The wheel, made from the source archive, in an environment that has nothing but what the wheel asks for.
wheel: $(VENV)/.installed-dev
	rm -rf dist .cache/wheel
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv .cache/wheel
	.cache/wheel/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	cd .cache && wheel/bin/simtriplet --version && wheel/bin/simtriplet demo --out demo --set pretrain.run.max_steps=5

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "simtriplet needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing simtriplet and its packages into $(VENV) (a few minutes and about 6 GB the first time)"
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev,interop]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
