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

.PHONY: demo test check unit slow opinfo fuzz bench format clean

# The main job: a real sentence encoder on the emulated HPU.
demo: $(STAMP)
	LIGHTNING_GAUDI_EMULATOR=1 $(BIN)/python examples/sentence_search.py --check

# Checks, then the tests that take no more than a few seconds each.
test: check unit

check: $(STAMP)
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

# 100,000 random calls, replayed and op by op.
fuzz: $(STAMP)
	LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 $(BIN)/python tests/graphs/fuzz.py --calls 100000

# Figures of this machine's CPU, never of a card. All run; fails where a target is missed.
bench: $(STAMP)
	@missed=0; for name in emulator replay buckets generation diffusion; do \
		LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 $(BIN)/python -W ignore benchmarks/bench_$$name.py || missed=1; \
	done; exit $$missed

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
