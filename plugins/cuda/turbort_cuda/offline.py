"""Compiling Triton kernels for GPUs that are not here, and judging what came out: `turbort check cuda --targets all`."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from turbort.errors import unknown
from turbort_cuda.arch import ARCHS
from turbort_cuda.launch_row import Launch
from turbort_cuda.launches import launches

GENERATIONS = (80, 86, 89, 90, 100, 120)
RELEASE = tuple(int(part) for part in triton.__version__.split(".")[:2])

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
    source = (_gluon_source() if hasattr(kernel, "is_gluon") and kernel.is_gluon() else ASTSource)(
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


def _gluon_source() -> Any:
    from triton.experimental.gluon._runtime import GluonASTSource

    return GluonASTSource


def fault(launch: Launch, capability: int, built: Built) -> str | None:
    """What is wrong with a compiled kernel: too much shared memory, or another matrix instruction than the one meant there."""
    arch = ARCHS[capability]
    if built.shared > arch.shared:
        return f"{built.shared} bytes of shared memory, {arch.name} has {arch.shared}"
    if launch.mma is None:
        return None
    used = built.instructions()
    if arch.mma != "tcgen05":
        wanted = f"{arch.mma} {launch.mma}"
        return None if wanted in used else f"wanted {wanted}, found {', '.join(sorted(used)) or 'none'}"
    # Triton 3.6 gives sm_100 mma.sync for int8; 3.8 the tcgen05 one. Kernels whose left operand is made in registers,
    # or whose tile has 64 rows, may use either.
    meant = launch.name in ("linear-fp8", "linear-int8") and (launch.mma != "s8" or RELEASE >= (3, 8))
    if meant and not any(found.startswith("tcgen05") for found in used):
        return f"wanted tcgen05, found {', '.join(sorted(used)) or 'none'}"
    return None if used else "no matrix instruction at all"


def build(launch: Launch, capability: int) -> Built:
    """A launch compiled for one architecture."""
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    if launch.registers is not None:
        options["maxnreg"] = launch.registers
    return compile_for(launch.kernel, capability, launch.arguments, launch.constants, **options)


def check_targets(targets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row per architecture (`sm_90`) and kernel, compiled on every core; nothing runs. InputError for an unknown name."""
    known = {ARCHS[capability].name: capability for capability in GENERATIONS}
    for name in targets:
        if name not in known:
            raise unknown("architecture", name, known)
    work = [(known[name], launch.name) for name in targets for launch in launches(known[name])]
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_checked, work)


def _checked(work: tuple[int, str]) -> dict[str, Any]:
    capability, name = work
    started = time.perf_counter()
    launch = next(row for row in launches(capability) if row.name == name)
    row: dict[str, Any] = {"target": ARCHS[capability].name, "case": name}
    try:
        built = build(launch, capability)
    except Exception as error:  # noqa: BLE001 - the compiler may fail in any way, and every kernel is to be judged
        text = str(error).strip().splitlines() or [""]
        return {**row, "ok": False, "detail": f"{type(error).__name__}: {text[-1][:200]}"}
    wrong = fault(launch, capability, built)
    found = ", ".join(sorted(built.instructions()))
    return {**row, "ok": wrong is None, "seconds": round(time.perf_counter() - started, 1), "detail": wrong or found}


def _tool(name: str) -> Path | None:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return path if path.exists() else None


def _notes(ptx: str, capability: int | str) -> str | None:
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
