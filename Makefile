PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# A file's tests stay together, and share what they set up.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: demo test test-all lint format constraints clean

demo: $(VENV)/.core                ## pretrain on digits without labels, and see what it is worth
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev                 ## the tests, without those marked slow
	$(PYTEST)

test-all: $(VENV)/.dev             ## all tests
	$(PYTEST) -m 'slow or not slow'

lint: $(VENV)/.dev                 ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(VENV)/.dev          ## pin what is installed now: names and versions, no addresses
	$(BIN)/python -m pip freeze --exclude-editable --exclude stable-ssl > constraints.txt

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.core
