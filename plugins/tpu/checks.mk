# TPU checks without a TPU; what each proves stands in docs/tpu.md.
#
#   make tpu-host     kernels and whole models on XLA:CPU, executor jax        (evidence: emulated)
#   make tpu-aot      every kernel for five generations, and what is refused   (evidence: vendor compiler)
#   make tpu-xla      executor torch_xla on PJRT CPU                           (evidence: emulated)
#   make tpu          these three
#   make tpu-trunk    nightly: the whole INT8 step of the 14B model, for one v6e    (evidence: vendor compiler)
#   make tpu-full     nightly: the whole conformance suite through jax and through torch_xla
#
# TPU_PYTHON    a Python 3.11 (the last jax for it also compiles for every target)
# TPU_TARGETS   generations to compile for
# TPU_REQUIRED  1: packages that cannot be installed are a failure, not a visible skip

TPU_PYTHON   ?= python3.11
TPU_VENV     ?= .venv-tpu
TPU_XLA_VENV ?= .venv-tpu-xla
TPU_TARGETS  ?= v4,v5e,v5p,v6e,tpu7x
TPU_OUT      ?= out
TPU_REQUIRED ?=
TPU_BIN      := $(TPU_VENV)/bin
TPU_TESTS    := plugins/tpu/tests
TPU_HOST     := JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 TURBORT_TPU_EMULATE=v5e TURBORT_TPU_CACHE=$(CURDIR)/$(TPU_OUT)/tpu-cache
TPU_XLA      := $(TPU_HOST) TURBORT_TPU_EXECUTOR=torch_xla PJRT_DEVICE=CPU
# $(1) a job, $(2) its environment: the job's recipe runs only where the environment could be made.
TPU_SKIPPED   = if [ -e $(2)/skipped ]; then sed 's/^/$(1) skipped: /' $(2)/skipped; exit 0; fi; mkdir -p $(TPU_OUT)

.PHONY: tpu tpu-host tpu-aot tpu-xla tpu-trunk tpu-full tpu-env tpu-xla-env

tpu: tpu-host tpu-aot tpu-xla

tpu-env:
	@plugins/tpu/environment.sh jax "$(TPU_PYTHON)" "$(TPU_VENV)" "$(TPU_REQUIRED)" $(PIP_ARGS)

tpu-xla-env:
	@plugins/tpu/environment.sh xla "$(TPU_PYTHON)" "$(TPU_XLA_VENV)" "$(TPU_REQUIRED)" $(PIP_ARGS)

# Both interpret modes of every kernel, whole models, planted faults, and the embedded model where its weights are.
tpu-host: tpu-env
	@$(call TPU_SKIPPED,tpu-host,$(TPU_VENV)); $(TPU_HOST) $(TPU_BIN)/python -m pytest -q $(TPU_TESTS)/host

# Every kernel at real shapes for every generation, and the programs that must be refused.
tpu-aot: tpu-env
	@$(call TPU_SKIPPED,tpu-aot,$(TPU_VENV)); \
	  $(TPU_BIN)/turbort check tpu --targets $(TPU_TARGETS) --json > $(TPU_OUT)/tpu-aot.json

# INT8 reaches a real product, nothing falls back, whole models agree.
tpu-xla: tpu-xla-env
	@$(call TPU_SKIPPED,tpu-xla,$(TPU_XLA_VENV)); $(TPU_XLA) $(TPU_XLA_VENV)/bin/python -m pytest -q $(TPU_TESTS)/xla

tpu-trunk: tpu-env
	@$(call TPU_SKIPPED,tpu-trunk,$(TPU_VENV)); \
	  $(TPU_BIN)/turbort compile --model wan2.1-t2v-14b --profile tpu-v6e -o $(TPU_OUT)/tpu-trunk

tpu-full: tpu-env tpu-xla-env
	@$(call TPU_SKIPPED,tpu-full,$(TPU_VENV)); $(TPU_HOST) $(TPU_BIN)/turbort check tpu --json > $(TPU_OUT)/tpu-host.json
	@$(call TPU_SKIPPED,tpu-full,$(TPU_XLA_VENV)); \
	  $(TPU_XLA) $(TPU_XLA_VENV)/bin/turbort check tpu --json > $(TPU_OUT)/tpu-xla.json
