#!/bin/sh
# Debian's MLIR 19 for `make ascend-ir-exec`: installed where apt-get may, named where not. Never fails: the tests then
# skip with the same words.
bin="${MLIR_BIN:-/usr/lib/llvm-19/bin}"
packages="mlir-19-tools llvm-19 gcc"

for tool in mlir-opt mlir-translate opt llc; do
    [ -x "$bin/$tool" ] || missing=1
done
[ -n "${missing:-}" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    install="apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 $packages"
    # shellcheck disable=SC2086
    $install >/dev/null 2>&1 || { apt-get update -qq && $install >/dev/null; } || true
fi
[ -x "$bin/mlir-opt" ] || echo "MLIR 19 is not installed: apt-get install $packages, or set MLIR_BIN" >&2
