# make distill: install into .venv and run the digits job.  make test: run the tests.
# make test-lowest: the core of the tests with the oldest packages of requirements.txt.
PYTHON ?= python3
WORKDIR ?= out/digits
BIN = .venv/bin

.PHONY: distill test test-lowest lint table table-fast clean

distill: .venv/installed
	$(BIN)/python -m ot_dd.distill --config=configs/digits.py --workdir=$(WORKDIR)

test: .venv/installed-dev
	$(BIN)/python -m pytest

LOWEST = .venv-lowest/bin/python
test-lowest: .venv/installed-dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct \
	    -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST) pytest pytest-xdist hypothesis pot
	$(LOWEST) -m pytest tests/data/test_sources.py tests/ot/test_sinkhorn.py \
	    tests/test_checkpoint.py tests/test_config.py \
	    tests/diffusion/test_steering.py tests/stages/test_pipeline.py

# Every set under two protocols: minutes on digits.
table-fast: .venv/installed
	$(BIN)/python -m benchmarks.table --config=configs/digits.py --workdir=out/digits \
	    --ipc=10 --students=convnet:width=32:depth=2,mlp \
	    --json=docs/results/table_digits.json
	$(BIN)/python docs/tables.py --page=docs/results.md

# The rest of docs/results.md, Fashion-MNIST: days on two cores.
table: .venv/installed-dev
	benchmarks/fashion_mnist.sh

lint: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf .venv .venv-lowest build *.egg-info

.venv/installed: requirements.lock requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ot-dd needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[dev]"
	touch $@
