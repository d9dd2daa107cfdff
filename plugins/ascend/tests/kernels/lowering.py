"""From the vendor's IR of a Triton kernel to a CPU library, through stock MLIR 19.

How a kernel becomes IR, and what Huawei's compiler says of it, is in `turbort_ascend.lowering`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

LLVM = Path(os.environ.get("MLIR_BIN", "/usr/lib/llvm-19/bin"))
MLIR_TOOLS = ("mlir-opt", "mlir-translate", "opt", "llc")
PASSES = (
    "--allow-unregistered-dialect", "--convert-elementwise-to-linalg", "--eliminate-empty-tensors",
    "--empty-tensor-to-alloc-tensor",
    "--one-shot-bufferize=allow-return-allocs-from-loops=true bufferize-function-boundaries=true allow-unknown-ops=true",
    "--canonicalize", "--cse", "--convert-linalg-to-loops", "--expand-strided-metadata", "--lower-affine", "--convert-scf-to-cf",
    "--convert-math-to-llvm", "--convert-math-to-libm", "--arith-expand", "--memref-expand", "--convert-cf-to-llvm",
    "--convert-arith-to-llvm", "--convert-index-to-llvm", "--finalize-memref-to-llvm", "--convert-func-to-llvm",
    "--reconcile-unrealized-casts",
)  # fmt: skip


def missing_tools() -> str | None:
    """Why lowered IR cannot be executed here."""
    absent = [tool for tool in MLIR_TOOLS if not (LLVM / tool).exists()]
    if absent:
        return f"{', '.join(absent)} not in {LLVM}: apt-get install mlir-19-tools llvm-19, or set MLIR_BIN"
    return None if shutil.which("gcc") else "gcc not found: apt-get install gcc"


@cache
def _helpers(folder: Path) -> Path:
    """Two functions that lowered code calls and no library has: bfloat16 rounding, and copies between strided memrefs."""
    made = folder / "helpers.o"
    subprocess.run(["gcc", "-O2", "-fPIC", "-c", "-o", str(made), str(Path(__file__).with_name("helpers.c"))], check=True)
    return made


def to_library(linalg: str, folder: Path) -> Path:
    """A shared library of the lowered kernel, through stock MLIR 19."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.mlir").write_text(linalg, encoding="utf-8")
    steps: list[list[str]] = [
        [str(LLVM / "mlir-opt"), "in.mlir", *PASSES, "-o", "low.mlir"],
        [str(LLVM / "mlir-translate"), "low.mlir", "--mlir-to-llvmir", "--allow-unregistered-dialect", "-o", "low.ll"],
        [str(LLVM / "opt"), "-O2", "low.ll", "-o", "low.bc"],
        [str(LLVM / "llc"), "-O2", "-relocation-model=pic", "-filetype=obj", "low.bc", "-o", "low.o"],
        ["gcc", "-shared", "-o", "kernel.so", "low.o", str(_helpers(folder.parent)), "-lm"],
    ]
    for step in steps:
        run = subprocess.run(step, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        assert run.returncode == 0, f"{Path(step[0]).name}: {run.stderr[:1500]}"
    return folder / "kernel.so"


class Launcher:
    """Stands in for a Triton kernel: `kernel[grid](*args, **constants)` runs the lowered library on CPU tensors."""

    def __init__(self, library: Path, name: str) -> None:
        self._function = getattr(ctypes.CDLL(str(library)), name)
        self._function.restype = None

    def __getitem__(self, grid: Sequence[int]) -> Any:
        def launch(*args: Any, **_: Any) -> None:
            plain: list[Any] = []
            for value in (None, None, *args):
                plain += _argument(value)
            sizes = (*grid, *(1,) * (3 - len(grid)))
            for z in range(sizes[2]):
                for y in range(sizes[1]):
                    for x in range(sizes[0]):
                        self._function(*plain, *map(ctypes.c_int32, (*sizes, x, y, z)))

        return launch


def _argument(value: Any) -> list[Any]:
    """How the lowered function takes it: a memref is (pointer, pointer, offset, size, stride)."""
    if isinstance(value, int):
        return [ctypes.c_int32(value)]
    if isinstance(value, float):
        return [ctypes.c_float(value)]
    pointer, count = (0, 0) if value is None else (value.data_ptr(), value.numel())
    return [ctypes.c_void_p(pointer), ctypes.c_void_p(pointer), ctypes.c_int64(0), ctypes.c_int64(count), ctypes.c_int64(1)]
