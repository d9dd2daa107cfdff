# make demo | test | fuzz | bench | docs.  Needs Python 3.10 or newer with venv and pip; everything else goes into .venv.
#
# PIP_ARGS      more arguments for pip, for example --extra-index-url ADDRESS of PyTorch's CPU wheels
# CONSTRAINTS   pip constraints; empty (make demo CONSTRAINTS=) takes the newest torch, as a GPU machine wants
# JOBS          test workers, one thread each
# ALLOW_CUDA=1  accept torch's CUDA build, several GB of packages, on a machine without an NVIDIA device

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints-cpu.txt
PIP_ARGS    ?=
ALLOW_CUDA  ?=
JOBS        ?= 2
PROMPT      ?= a red circle moves right
OUT         ?= out/demo.mp4

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) $(PIP_ARGS)

.PHONY: demo test lint check-types imports unit fuzz bench docs clean cuda-interpret cuda-compile

demo: $(VENV)/installed
	@mkdir -p $(dir $(OUT))
	$(BIN)/turbort run --prompt "$(PROMPT)" -o $(OUT)
	@echo "The video is at $(OUT)"

test: lint check-types imports unit

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .

check-types: $(VENV)/installed-dev
	$(BIN)/mypy

imports: $(VENV)/installed-dev
	$(BIN)/lint-imports

unit: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

# New examples for every property test, twenty times as many as `unit` takes: some minutes.
fuzz: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m hypothesis --hypothesis-profile=fuzz tests

# Triton runs and compiles kernels without a GPU; both say so and skip where it is not installed.
cuda-interpret: $(VENV)/installed-dev
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal plugins/cuda/tests/interpret

# Fusing products with sums is Triton's own default; 3.9 warns that it is not said.
cuda-compile: $(VENV)/installed-dev
	TRITON_DEFAULT_FP_FUSION=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal plugins/cuda/tests/compile

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.cpu_demo

docs: $(VENV)/installed
	$(INSTALL) -e '.[docs]'
	$(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(BIN)/python tools/torch_wheel.py $(if $(ALLOW_CUDA),--allow-cuda) -- $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) $(PIP_ARGS)
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist site

include $(wildcard plugins/*/checks.mk)
