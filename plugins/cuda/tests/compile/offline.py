"""Compiling a Triton kernel for a GPU that is not here, and reading what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

MMA = {
    "tcgen05": r"tcgen05\.mma",
    "wgmma": r"wgmma\.mma_async",
    "mma.sync": r"mma\.sync",
}


@dataclass(frozen=True)
class Built:
    """What the compiler made: PTX (or AMD assembly), shared memory in bytes, stack bytes per thread (spills; None if unknown)."""

    text: str
    shared: int
    stack: int | None = None
    registers: int | None = None
    notes: str | None = None

    def instructions(self) -> set[str]:
        """Matrix instructions by the name in `MMA` and the operand type, such as `wgmma s8`."""
        found = set()
        for name, pattern in MMA.items():
            for line in re.findall(rf"{pattern}[^\s]*", self.text):
                kind = next((kind for kind in ("s8", "e4m3", "bf16", "f16", "tf32", "i8", "f8f6f4") if f".{kind}" in line), "")
                found.add(f"{name} {kind}".strip())
        return found


def compile_for(
    kernel: Any, capability: int | str, arguments: Mapping[str, str], constants: Mapping[str, Any], **options: Any
) -> Built:
    """Compile `kernel` with argument types (`*bf16`, `i32`, `tensordesc<i8[128, 128]>`) and constants for one architecture.

    Pointers and the integers that `arguments` spells `i32:16` are taken to be multiples of 16, as launches find them.
    """
    names = list(kernel.arg_names)
    signature = {name: arguments[name].partition(":")[0] if name in arguments else "constexpr" for name in names}
    missing = [name for name in names if name not in arguments and name not in constants]
    assert not missing, f"{kernel.__name__} is given nothing for {missing}"
    aligned = [name for name, kind in arguments.items() if kind.startswith("*") or kind.endswith(":16")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    amd = isinstance(capability, str)
    target = GPUTarget("hip", capability, 64) if amd else GPUTarget("cuda", capability, 32)
    built = triton.compile(source, target=target, options=options)
    if amd:
        return Built(built.asm["amdgcn"], built.metadata.shared)
    return Built(built.asm["ptx"], built.metadata.shared, *_resources(built.asm["cubin"]), _notes(built.asm["ptx"], capability))


def _tool(name: str) -> Path | None:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return path if path.exists() else None


def _notes(ptx: str, capability: int) -> str | None:
    """What ptxas says of spills and serialised products on Hopper."""
    tool = _tool("ptxas") if capability == 90 else None
    if tool is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [str(tool), "-v", "--gpu-name=sm_90a", str(source), "-o", str(source.with_suffix(".cubin"))]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def _resources(cubin: bytes) -> tuple[int | None, int | None]:
    """Stack bytes and registers per thread, as the cuobjdump in Triton's wheel reports them."""
    tool = _tool("cuobjdump")
    if tool is None:
        return None, None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=False).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return (int(found[2]), int(found[1])) if found else (None, None)
