# make tpu-host | tpu-aot.  Both make their own environment (Python 3.11, jax 0.10.2 with libtpu 0.0.42, CPU torch).
#
# TPU_PYTHON    a Python 3.11 (the last jax for it also compiles for every target)
# TPU_TARGETS   generations to compile for
# TPU_REQUIRED  1: packages that cannot be installed are a failure, not a visible skip

TPU_PYTHON   ?= python3.11
TPU_VENV     ?= .venv-tpu
TPU_TARGETS  ?= v4,v5e,v5p,v6e,tpu7x
TPU_OUT      ?= out
TPU_REQUIRED ?=
TPU_BIN      := $(TPU_VENV)/bin
TPU_HOST     := JAX_PLATFORMS=cpu TURBORT_TPU_EMULATE=v5e TURBORT_TPU_CACHE=$(CURDIR)/$(TPU_OUT)/tpu-cache

.PHONY: tpu-host tpu-aot tpu-trunk tpu-env

tpu-env:
	@plugins/tpu/environment.sh "$(TPU_PYTHON)" "$(TPU_VENV)" "$(TPU_REQUIRED)" $(PIP_ARGS)

# Conformance of every kernel and whole models on XLA:CPU, through the same executor as on a TPU.
tpu-host: tpu-env
	@if [ -e $(TPU_VENV)/skipped ]; then sed 's/^/tpu-host skipped: /' $(TPU_VENV)/skipped; else \
	  mkdir -p $(TPU_OUT) && $(TPU_HOST) $(TPU_BIN)/python -m pytest -q plugins/tpu/tests && \
	  $(TPU_HOST) $(TPU_BIN)/turbort check tpu --json > $(TPU_OUT)/tpu-host.json; fi

# Every kernel at real shapes for every generation, and the programs that must be refused.
tpu-aot: tpu-env
	@if [ -e $(TPU_VENV)/skipped ]; then sed 's/^/tpu-aot skipped: /' $(TPU_VENV)/skipped; else \
	  mkdir -p $(TPU_OUT) && $(TPU_BIN)/turbort check tpu --targets $(TPU_TARGETS) --json > $(TPU_OUT)/tpu-aot.json; fi

# The whole INT8 trunk of the 14B model for one v6e; minutes.
tpu-trunk: tpu-env
	@if [ -e $(TPU_VENV)/skipped ]; then sed 's/^/tpu-trunk skipped: /' $(TPU_VENV)/skipped; else \
	  mkdir -p $(TPU_OUT) && $(TPU_BIN)/turbort compile --model wan2.1-t2v-14b --profile tpu-v6e -o $(TPU_OUT)/tpu-trunk; fi
