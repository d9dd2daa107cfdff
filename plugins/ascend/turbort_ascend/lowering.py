"""From a Triton kernel to the vendor's IR: what Triton-Ascend and Huawei's compiler make of it on a machine without a card.

Triton-Ascend lowers a kernel to TTIR and then to linalg (`.ttadapter`); Huawei's `bishengir-compile` plans on-chip memory and
synchronisation for one chip and hands its module to the closed `hivmc`. Here a script stands in for that last step and keeps
the module.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from turbort_ascend.device import has_triton

HIVMC = """#!/bin/sh
# Stands in for CANN's closed hivmc: answers for its version and keeps what bishengir-compile hands over.
if [ "$1" = "--version" ]; then echo "hivmc 1.2.0 (8796a8ac1508 2026-07-29)"; exit 0; fi
for argument in "$@"; do [ -f "$argument" ] && cp "$argument" "$HIVMC_KEEP/"; done
exit 0
"""


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


def to_linalg(source: Source, chip: str) -> str:
    """The `.ttadapter` that triton-ascend makes of a kernel for `chip`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from turbort_ascend.kernels import triton_kernels

    function = getattr(triton_kernels, source.kernel)
    signature = {**source.types, **dict.fromkeys(source.constants, "constexpr")}
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("TRITON_CACHE_DIR")
        os.environ["TRITON_CACHE_DIR"] = folder
        ast = ASTSource(function, signature, dict(source.constants))
        failure: Exception | None = None
        try:
            triton.compile(ast, target=GPUTarget("npu", chip, 0), options={})
        except Exception as error:  # noqa: BLE001 - without CANN the step after linalg fails, in several ways
            failure = error
        finally:
            os.environ.pop("TRITON_CACHE_DIR")
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before
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
