# What each target needs it installs itself, into .venv; programs that pip does not bring, where apt-get may.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PEERS  := .venv-peers
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Where btcusdt_1h.parquet and other_1h.parquet are taken from if data/ lacks them; without it they are fetched.
DATA ?= ../shared/data
OTHERS := ETHUSDT,BNBUSDT,XRPUSDT,ADAUSDT,LTCUSDT,LINKUSDT,DOGEUSDT,TRXUSDT,ETCUSDT,XLMUSDT

.PHONY: demo test fast cover check docs bench peers model clean

demo: $(VENV)/.demo
	$(BIN)/volcast demo

test: $(VENV)/.dev
	@$(PYTHON) tests/programs.py
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The core and the adapters, without what takes long.
fast: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 -m "not slow" tests/stream/core tests/stream/adapters

cover: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 -m "not slow" --cov --cov-report=term:skip-covered tests/stream/core tests/stream/adapters

# The tables of docs/ that the code knows best.
docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/project/test_architecture.py

bench: $(VENV)/.dev
	$(BIN)/python -m pytest tests/benchmarks -m bench -s

# Other clients of the same stream, each in an environment of its own; what does not install is left out, and named.
peers:
	@$(PYTHON) tests/programs.py venv
	$(PYTHON) tests/peers/install.py $(PEERS)
	$(PEERS)/volcast/bin/python tests/peers/run.py $(PEERS) --keras $(BIN)/python

# dvc.yaml has the stages; DVC finds `volcast` on the PATH.
model: $(VENV)/.dev data/btcusdt_1h.parquet data/other_1h.parquet
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

data/btcusdt_1h.parquet: | $(VENV)/.dev
	mkdir -p data runs
	cp $(DATA)/$(@F) $@ 2>/dev/null || \
	  $(BIN)/volcast fetch --symbols BTCUSDT --from 2017-08-17 --to 2025-01-01 --out $@

data/other_1h.parquet: | $(VENV)/.dev
	mkdir -p data runs
	cp $(DATA)/$(@F) $@ 2>/dev/null || \
	  $(BIN)/volcast fetch --symbols $(OTHERS) --from 2017-08-17 --to 2025-01-01 --out $@

# A .venv that was left half made is made anew.
.DELETE_ON_ERROR:
$(BIN)/pip:
	@$(PYTHON) tests/programs.py venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'

$(VENV)/.demo: $(BIN)/pip pyproject.toml constraints.txt
	@echo "Installing what the demo needs (about a minute) ..."
	$(PIP) -e '.[demo,drift]'
	touch $@

$(VENV)/.dev: $(BIN)/pip pyproject.toml constraints.txt
	@echo "Installing everything, TensorFlow included (some minutes) ..."
	$(PIP) -e '.[demo,drift,train,research,pipeline]' --group dev
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) $(PEERS) runs dist build .mypy_cache .ruff_cache .hypothesis
