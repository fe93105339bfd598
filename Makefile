# For machines without a Gaudi: everything runs on the emulated HPU in .venv.
# On a Gaudi node do not use this file: it installs a torch that is not Habana's. See README.md.

PYTHON ?= python3
# Where torch comes from, for pip; on Linux this keeps CUDA out:
#   make demo TORCH_SOURCE="--index-url https://download.pytorch.org/whl/cpu"
TORCH_SOURCE ?=

BIN := .venv/bin
STAMP := .venv/.installed
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint unit slow opinfo check fuzz bench format clean

# The main job: a real sentence encoder on the emulated HPU.
demo: $(STAMP)
	LIGHTNING_GAUDI_EMULATOR=1 $(BIN)/python examples/sentence_search.py --check

# Style, types and layers, then the tests that take no more than a few seconds each.
test: lint unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2

# The tests that take longer: random sequences, two cards, real models, the examples.
slow: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 -m slow

# Every op of PyTorch with all its samples, on the emulated HPU and on the CPU.
opinfo: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 -m opinfo tests/emulator/opinfo

# What a release must hold beyond that: a light import, no API newer than the oldest torch that is
# supported, the core tests on the oldest Lightning, a wheel that works in a clean environment.
check: lint
	$(BIN)/python checks/import_time.py
	$(BIN)/python checks/oldest_torch.py
	$(BIN)/python checks/oldest_lightning.py
	$(BIN)/python checks/wheel.py

# 100,000 random calls, replayed and op by op.
fuzz: $(STAMP)
	LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 $(BIN)/python tests/graphs/fuzz.py --calls 100000

# Figures of this machine's CPU, never of a card. All run; fails where a target is missed. Writes
# benchmarks/RESULTS.md and compares with the last one.
bench: $(STAMP)
	$(BIN)/python benchmarks/run_all.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "lightning_gaudi needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH_SOURCE) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cli,examples,test]"
	touch $(STAMP)

clean:
	rm -rf .venv
