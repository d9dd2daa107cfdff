#!/bin/sh
# usage: environment.sh jax|xla PYTHON VENV REQUIRED [PIP_ARGS...]
# Makes VENV for the TPU jobs: `jax` for the default executor and the compiler, `xla` for torch_xla on PJRT CPU.
# When a package cannot be had, VENV/skipped says which (an error with REQUIRED=1).
set -u
kind=$1 python=$2 venv=$3 required=$4
shift 4

give_up() {
    if [ "$required" = 1 ]; then
        echo "error: $1" >&2
        exit 1
    fi
    mkdir -p "$venv"
    echo "$1" > "$venv/skipped"
    exit 0
}

[ -e "$venv/ready" ] && exit 0
rm -f "$venv/skipped"
command -v "$python" > /dev/null || give_up "there is no $python; set TPU_PYTHON to a Python 3.11"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || give_up "$python -m venv failed"
# --no-compile: a job imports a tenth of these modules, and compiling all of them costs more than the job.
pip="$venv/bin/python -m pip install --quiet --no-compile $*"
case $kind in
jax)
    $pip 'jax[tpu]==0.10.2' || give_up "pip cannot install jax[tpu]==0.10.2 (compiler and host runtime)"
    "$venv/bin/python" tools/torch_wheel.py -- -c constraints-cpu.txt "$@" \
        || give_up "pip would install torch's CUDA build; give the CPU index in PIP_ARGS"
    $pip -c constraints-cpu.txt torch || give_up "pip cannot install torch 2.13.0"
    $pip -e . opencv-python-headless pytest || give_up "pip cannot install turbort"
    ;;
xla)
    # The last torch_xla wants exactly torch 2.9, whose Linux wheels are CUDA builds: without their gigabytes of CUDA
    # packages they import once stand-ins for the missing libraries lie beside them.
    command -v cc > /dev/null && command -v readelf > /dev/null || give_up "needs a C compiler and readelf (Debian: gcc, binutils)"
    $pip --no-deps torch==2.9.0 torch_xla==2.9.0 || give_up "pip cannot install torch 2.9.0 and torch_xla 2.9.0"
    "$venv/bin/python" plugins/tpu/tests/xla/cuda_stubs.py || give_up "the stand-ins for CUDA's libraries cannot be built"
    # flax, because the torchax inside torch_xla imports it.
    $pip 'jax==0.7.1' 'jaxlib==0.7.1' 'flax<0.12' absl-py requests || give_up "pip cannot install jax 0.7.1"
    "$venv/bin/python" tools/dependencies.py --without torch > "$venv/requirements.txt"
    $pip -r "$venv/requirements.txt" filelock sympy networkx jinja2 fsspec pytest || give_up "pip cannot install turbort's dependencies"
    $pip --no-deps -e . || give_up "pip cannot install turbort"
    ;;
*)
    echo "error: no environment of kind '$kind'; jax or xla" >&2
    exit 2
    ;;
esac
touch "$venv/ready"
