# make demo | test | bench | docs.  Needs Python 3.10 or newer with venv and pip; everything else goes into .venv.
#
# PIP_ARGS      more arguments for pip, for example --extra-index-url ADDRESS of PyTorch's CPU wheels
# CONSTRAINTS   pip constraints; empty (make demo CONSTRAINTS=) takes the newest torch, as a GPU machine wants
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

.PHONY: demo test lint check-types imports unit bench docs clean

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
	$(BIN)/python -m pytest -n $(JOBS)

bench: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.cpu_demo

docs: $(VENV)/installed
	$(INSTALL) -e '.[docs]'
	$(BIN)/mkdocs build --strict

include plugins/tpu/tpu.mk

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
