# Everything happens in .venv; each target does the set-up that it needs.
#   make install   the package, editable, with what the tests and the demo need
#   make demo      nn.RNN and fused_bptt.RNN side by side on real data
#   make test      the tests
#   make bench     against everything else that trains a vanilla RNN on a CPU, to benchmarks/results/
#   make wheel     the wheel, with CUDA kernels for every architecture where there is nvcc
#   make cuda      that wheel checked: size, symbols, registers and spills of every kernel
#   make gpu       on a machine with a GPU: tests, sanitizer and timings, to OUT (default out/gpu)
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := torch==2.13.0

# CUDA kernels only for a GPU that is here: elsewhere they could not run, and compiling them takes
# minutes.
INSTALL := FUSED_BPTT_CUDA_ARCHS="$${FUSED_BPTT_CUDA_ARCHS-native}" \
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable

.PHONY: install demo test lint format bench wheel cuda gpu clean

install: $(VENV)/.installed

demo: install
	$(BIN)/fused-bptt train --output out/demo

test: install
	$(BIN)/python -m pytest

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: $(VENV)/.linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

bench: $(VENV)/.rivals
	$(BIN)/fused-bptt bench --full --resume --out benchmarks/results

$(VENV)/.rivals: $(VENV)/.installed
	$(INSTALL) '.[bench]'
	touch $@

cuda: install wheel
	FUSED_BPTT_REQUIRE_NVCC=1 $(BIN)/python -m pytest tests/test_cuda_build.py

# Offline, and with the Python that is there, its torch and its packages.
gpu:
	$(PYTHON) -m benchmarks.gpu --out "$(or $(OUT),out/gpu)" $(if $(PARTS),--parts $(PARTS))

wheel: $(VENV)/.torch
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf build dist out *.egg-info fused_bptt/*.so .pytest_cache .mypy_cache .ruff_cache

SUFFIXES := -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'
CPP := $(shell find csrc $(SUFFIXES))
FORMATTED := $(shell find csrc tests benchmarks fused_bptt/bench $(SUFFIXES))

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH) numpy ninja 'setuptools>=77' wheel
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py build_cuda.py $(CPP)
	$(INSTALL) '.[test]'
	touch $@

$(VENV)/.linters: $(VENV)/.installed
	$(INSTALL) '.[dev]'
	touch $@
