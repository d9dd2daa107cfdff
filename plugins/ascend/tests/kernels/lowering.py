"""From a Triton kernel to the vendor's IR, and on: to the vendor's compiler, or to a CPU library.

Triton-Ascend lowers a kernel to TTIR and then to linalg (`.ttadapter`). From there one way goes through Huawei's
`bishengir-compile`, which plans on-chip memory and synchronisation and hands its module to the closed `hivmc`; here a
script stands in for that last step and keeps the module. The other way goes through stock MLIR 19 to a shared library.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from turbort_ascend.device import has_triton

HIVMC = """#!/bin/sh
# Stands in for CANN's closed hivmc: answers for its version and keeps what bishengir-compile hands over.
if [ "$1" = "--version" ]; then echo "hivmc 1.2.0 (8796a8ac1508 2026-07-29)"; exit 0; fi
for argument in "$@"; do [ -f "$argument" ] && cp "$argument" "$HIVMC_KEEP/"; done
exit 0
"""
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


@dataclass(frozen=True)
class Source:
    """A kernel with the types of its arguments and the values of its constants."""

    kernel: str
    types: Mapping[str, str]
    constants: Mapping[str, int]


def missing_compiler() -> str | None:
    """Why kernels cannot be compiled here."""
    if not has_triton():
        return "triton-ascend is not installed: `make ascend-ir-venv`"
    return None if find_spec("ascendnpuir") else "ascendnpu-ir is not installed: `make ascend-ir-venv`"


def missing_tools() -> str | None:
    """Why lowered IR cannot be executed here."""
    absent = [tool for tool in MLIR_TOOLS if not (LLVM / tool).exists()]
    if absent:
        return f"{', '.join(absent)} not in {LLVM}: apt-get install mlir-19-tools llvm-19, or set MLIR_BIN"
    return None if shutil.which("gcc") else "gcc not found: apt-get install gcc"


def to_linalg(source: Source, chip: str) -> str:
    """The `.ttadapter` that triton-ascend makes of a kernel for `chip`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from turbort_ascend.kernels import triton_kernels

    function = getattr(triton_kernels, source.kernel)
    signature = {**source.types, **dict.fromkeys(source.constants, "constexpr")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        ast = ASTSource(function, signature, dict(source.constants))
        failure: Exception | None = None
        try:
            triton.compile(ast, target=GPUTarget("npu", chip, 0), options={})
        except Exception as error:  # noqa: BLE001 - without CANN the step after linalg fails, in several ways
            failure = error
        made = list(Path(folder).rglob("*.ttadapter"))
        if not made:
            raise AssertionError(f"triton-ascend made no linalg of {source.kernel}: {failure}")
        return made[0].read_text(encoding="utf-8")


@dataclass(frozen=True)
class Compiled:
    """What the vendor's compiler said: accepted or not, its words, the module it handed on, bytes of memory by space."""

    accepted: bool
    words: str
    module: str
    memory: Mapping[str, int]


def compile_for(linalg: str, chip: str) -> Compiled:
    """Huawei's pipeline for one chip up to the closed last step."""
    spec = find_spec("ascendnpuir")
    assert spec is not None
    assert spec.submodule_search_locations
    tools = Path(next(iter(spec.submodule_search_locations))) / "bin"
    program = "bishengir-compile-a5" if chip.startswith("Ascend950") else "bishengir-compile"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kernel.ttadapter").write_text(linalg, encoding="utf-8")
        (folder / "kept").mkdir()
        for script in ("hivmc", "hivmc-a5"):
            (folder / script).write_text(HIVMC, encoding="utf-8")
            (folder / script).chmod(0o755)
        command = [
            str(tools / program), str(folder / "kernel.ttadapter"), f"--target={chip}", "--enable-auto-multi-buffer=True",
            "--enable-hfusion-compile=true", "--enable-hivm-compile=true", "--enable-triton-kernel-compile=true",
            "-o", str(folder / "out"),
        ]  # fmt: skip
        path = os.pathsep.join((str(folder), str(tools), os.environ["PATH"]))
        environment = {**os.environ, "PATH": path, "HIVMC_KEEP": str(folder / "kept")}
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
        kept = sorted((folder / "kept").iterdir())
        module = kept[-1].read_text(encoding="utf-8", errors="replace") if kept else ""
    return Compiled(run.returncode == 0, run.stdout + run.stderr, module, on_chip(module))


SIZES = {"i1": 1, "i8": 1, "f16": 2, "bf16": 2, "i16": 2, "i32": 4, "f32": 4, "i64": 8}


def on_chip(module: str) -> dict[str, int]:
    """Highest byte that the module uses in each on-chip space (ub, cc = L0C, cbuf = L1)."""
    found: dict[str, int] = {}
    pattern = r"pointer_cast\(([^)]*)\)[^:]*: memref<((?:\d+x)+)(\w+)(?:, strided<[^>]*>)?, #hivm\.address_space<(\w+)>>"
    for function in module.split("func.func"):  # value names start anew in each function
        pairs = re.findall(r"(%[\w#-]+) = (?:llvm\.mlir\.constant\(|arith\.constant )(\d+) : i64", function)
        constants = {name: int(value) for name, value in pairs}
        for starts, shape, kind, space in re.findall(pattern, function):
            size = SIZES[kind]
            for extent in shape.split("x")[:-1]:
                size *= int(extent)
            for start in starts.split(","):
                found[space] = max(found.get(space, 0), constants[start.strip()] + size)
    return found


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
