#!/bin/sh
# usage: environment.sh PYTHON VENV REQUIRED [PIP_ARGS...]
# Makes VENV for the TPU jobs. When a package cannot be had, VENV/skipped says which (an error with REQUIRED=1).
set -u
python=$1 venv=$2 required=$3
shift 3

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
pip="$venv/bin/python -m pip install --quiet $*"
$pip 'jax[tpu]==0.10.2' || give_up "pip cannot install jax[tpu]==0.10.2 (compiler and host runtime)"
"$venv/bin/python" tools/torch_wheel.py -- -c constraints-cpu.txt "$@" || give_up "pip would install torch's CUDA build; give the CPU index in PIP_ARGS"
$pip -c constraints-cpu.txt torch || give_up "pip cannot install torch 2.13.0"
$pip -e . pytest hypothesis || give_up "pip cannot install turbort"
touch "$venv/ready"
