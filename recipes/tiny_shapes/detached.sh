#!/usr/bin/env bash
# Trains in the background of a machine that is reached through short commands. Training outlives the command.
#
#   detached.sh start GPUS [arguments of recipes.tiny_shapes.all]   copies the repository to $WORK and starts training there
#   detached.sh wait SECONDS                                        waits, shows the log's end, packs results into $OUT
#
# Taken over: wheels of Python packages that the machine lacks from runs/whl, an earlier run's pieces from runs/pieces, weights/ of this folder.
set -uo pipefail

WORK=${WORK:-/tmp/tiny-work}
RUN=${RUN:-/tmp/tiny-run}
OUT=${OUT:-/tmp/tiny-out}
PYTHON=${PYTHON:-python3}
SITE=${SITE:-/tmp/tiny-site}
# One host: loopback is enough for finding each other, and needs no name service. NVLink multicast stays off.
export PYTHONPATH=$SITE PYTHONUNBUFFERED=1 NCCL_NVLS_ENABLE=0 NCCL_SOCKET_IFNAME=lo GLOO_SOCKET_IFNAME=lo

start() {
    local gpus=$1
    shift
    rm -rf "$WORK" && mkdir -p "$WORK" "$RUN" "$SITE"
    cp -r recipes turbort profiles pyproject.toml LICENSE "$WORK"/
    if compgen -G "runs/whl/*.whl" >/dev/null; then
        $PYTHON -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" runs/whl/*.whl || return 1
    fi
    if compgen -G "runs/pieces/run.tar.*" >/dev/null; then
        $PYTHON -m recipes.tiny_shapes.transport unpack runs/pieces "$RUN" || return 1
        cp -rn "$RUN"/export/weights/. "$RUN"/ 2>/dev/null
    fi
    cp -rn recipes/tiny_shapes/weights/. "$RUN"/ 2>/dev/null
    cd "$WORK" || return 1
    $PYTHON -c "import pydantic, pluggy, yaml, safetensors, tokenizers, cv2, torch; print(torch.__version__, torch.cuda.device_count(), 'GPUs')" || return 1
    rm -f "$RUN/status"
    local launch="$PYTHON -m"
    if [ "$gpus" -gt 1 ]; then
        launch="$PYTHON -m torch.distributed.run --nproc-per-node $gpus --master-addr 127.0.0.1 --master-port 29533 -m"
    fi
    setsid nohup bash -c "$launch recipes.tiny_shapes.all --out $RUN $*; echo \$? > $RUN/status" >"$RUN/all.log" 2>&1 </dev/null &
    echo "started: $launch recipes.tiny_shapes.all --out $RUN $*"
}

finish() {
    local end=$((SECONDS + $1))
    while [ ! -e "$RUN/status" ] && [ $SECONDS -lt $end ]; do sleep 1; done
    grep -v '^\[.*step [0-9]* ' "$RUN/all.log" | tail -n 70
    tail -n 2 "$RUN/all.log"
    # Small enough to send home: what a later stage replaces stays behind.
    local skip=('student/fake*')
    if [ -d "$RUN/export" ]; then skip+=('vae/*.safetensors' 'teacher/*.safetensors' 'sla/*.safetensors'); fi
    if [ -e "$RUN/sla/dit.safetensors" ]; then skip+=('student/*.safetensors'); fi
    (cd "$WORK" && $PYTHON -m recipes.tiny_shapes.transport pack "$RUN" "$OUT" --skip "${skip[@]}")
    if [ -e "$RUN/status" ]; then echo "ENDED with status $(cat "$RUN/status")"; else echo "RUNNING: wait again"; fi
}

case ${1:-} in
    start) shift && start "$@" ;;
    wait) finish "${2:-0}" ;;
    *) sed -n '2,8p' "$0" && exit 2 ;;
esac
