# What each target needs it installs itself, into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Candles to train on; see `volcast fetch`.
CANDLES ?= ../shared/data/btcusdt_1h.parquet

.PHONY: demo test check bench model clean

demo: $(VENV)/.demo
	$(BIN)/volcast demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: $(VENV)/.dev
	$(BIN)/python -m pytest tests/benchmarks -m bench -s

model: $(VENV)/.dev
	$(BIN)/volcast train --candles $(CANDLES) --out runs/btcusdt-1h
	$(BIN)/volcast export --run runs/btcusdt-1h --out export/models/btcusdt-1h.onnx
	$(BIN)/volcast evaluate --candles $(CANDLES) --model export/models/btcusdt-1h.onnx

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing what the demo needs (about a minute) ..."
	$(PIP) -e '.[demo,drift]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing everything, TensorFlow included (some minutes) ..."
	$(PIP) -e '.[demo,drift,train]' --group dev
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) runs dist build .mypy_cache .ruff_cache .hypothesis
