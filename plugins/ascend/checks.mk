# Checks of the Ascend plugin, without a card; what each proves stands in docs/ascend.md.
#
#   make ascend-host       torch-npu's runtime, the AscendCL pool                      (evidence: emulated driver)
#   make ascend-ops        every op call of every plan, golden files per chip          (evidence: vendor host code)
#   make ascend-emulated   a model from prompt to frames, conformance                  (evidence: emulated arithmetic)
#   make ascend-kernels    Triton kernels through the vendor's compiler                (evidence: vendor compiler)
#   make ascend-ir-exec    the compiler's lowered IR on the CPU                        (evidence: executed IR)
#   make ascend            all of them
#
# ASCEND_VENV, ASCEND_IR_VENV   where the packages go; torch-npu and triton-ascend each need a venv of their own
# UPDATE=1                      rewrite the golden files of ascend-ops
# MLIR_BIN                      where mlir-opt and llc are, if not in Debian's /usr/lib/llvm-19/bin

ASCEND_VENV    ?= .venv-ascend
ASCEND_IR_VENV ?= .venv-ascend-ir
ASCEND_TESTS   := plugins/ascend/tests
ASCEND_PYTEST  = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -q -c $(ASCEND_TESTS)/vendor.ini -n $(JOBS)
ASCEND_SITE    = $(ASCEND_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: ascend ascend-venv ascend-ir-venv ascend-mlir ascend-host ascend-ops ascend-emulated ascend-kernels ascend-ir-exec

ascend: ascend-host ascend-ops ascend-emulated ascend-kernels ascend-ir-exec

ascend-venv: $(ASCEND_VENV)/installed

$(ASCEND_VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(ASCEND_VENV)
	$(ASCEND_VENV)/bin/python tools/torch_wheel.py $(if $(ALLOW_CUDA),--allow-cuda) -- torch==2.13.0 $(PIP_ARGS)
	$(ASCEND_VENV)/bin/python -m pip install --quiet torch==2.13.0 $(PIP_ARGS)
	$(ASCEND_VENV)/bin/python -m pip install --quiet -e . pytest pytest-xdist hypothesis "opencv-python-headless>=4.9" $(PIP_ARGS)
	-$(ASCEND_VENV)/bin/python -m pip install --quiet torch-npu==2.13.0 $(PIP_ARGS)
	@touch $@

# triton-ascend installs itself as `triton`, and `turbort devices` on the emulated driver must not see it: so it lies in an
# environment of its own, on top of the other one. Without its dependencies it stays the only `triton`.
$(ASCEND_IR_VENV)/installed: $(ASCEND_VENV)/installed
	$(PYTHON) -m venv $(ASCEND_IR_VENV)
	echo "import site; site.addsitedir('$$($(ASCEND_SITE))')" > $$(echo $(ASCEND_IR_VENV)/lib/python*/site-packages)/ascend-venv.pth
	-$(ASCEND_IR_VENV)/bin/python -m pip install --quiet --no-deps triton-ascend==3.2.0 ascendnpu-ir==1.2.0 pybind11 $(PIP_ARGS)
	@touch $@

ascend-ir-venv: $(ASCEND_IR_VENV)/installed

# The last step of the executed IR; what cannot be installed is named, and its tests skip.
ascend-mlir:
	@$(ASCEND_TESTS)/kernels/install_mlir.sh

ascend-host: ascend-venv
	$(call ASCEND_PYTEST,$(ASCEND_VENV)) --dist loadfile $(ASCEND_TESTS)/host

ascend-ops: ascend-venv
	UPDATE=$(UPDATE) $(call ASCEND_PYTEST,$(ASCEND_VENV)) --dist load $(ASCEND_TESTS)/ops

ascend-emulated: ascend-venv
	$(call ASCEND_PYTEST,$(ASCEND_VENV)) --dist loadfile $(ASCEND_TESTS)/emulated

ascend-kernels: ascend-ir-venv
	$(call ASCEND_PYTEST,$(ASCEND_IR_VENV)) --dist load $(ASCEND_TESTS)/kernels/test_compile.py

ascend-ir-exec: ascend-ir-venv ascend-mlir
	$(call ASCEND_PYTEST,$(ASCEND_IR_VENV)) -n 0 $(ASCEND_TESTS)/kernels/test_execute.py
