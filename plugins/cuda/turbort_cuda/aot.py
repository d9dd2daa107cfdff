"""Compiling a plan's Triton kernels for GPUs that are not here, and using what was compiled.

The plan's own functions are called on meta tensors of the plan's sizes, with a driver that only names the architecture and with
launches that only compile. So every kernel is specialised exactly as a run would specialise it, and Triton's cache key, which
covers source, types, constants, options and compiler, is the key of the run. The folder is a Triton cache that may be moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import FileCacheManager
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from turbort.bind import bound_function, find_kernel
from turbort.errors import UnavailableError
from turbort.kernel import Call, TensorSpec
from turbort.plan import Choice, Plan
from turbort.planner import DTYPES
from turbort.precision import PRECISIONS, SUMS
from turbort.quant.schemes import SCHEMES, quantize
from turbort.registry import Registry
from turbort_cuda.arch import ARCHS
from turbort_cuda.launch import interpreted, pretending

FOLDER = "triton"


class _Driver:
    """As much of a Triton driver as compiling needs: the target, and a device that no real one shares a cache with."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return f"ahead-of-time sm_{self.target.arch}"

    def get_current_stream(self, device: object) -> int:
        return 0


@dataclass(frozen=True)
class Compiled:
    """One specialised kernel for one architecture: the folder of its cubin, shared memory in bytes, and sites that launch it."""

    kernel: str
    arch: str
    key: str
    shared: int
    sites: int


def targets(globs: Sequence[str]) -> list[int]:
    """Capabilities that a profile's globs name."""
    return [row.capability for row in ARCHS.values() if any(fnmatchcase(row.name, glob) for glob in globs)]


def compile_plan(
    plan: Plan, sites: Sequence[Sequence[Call]], registry: Registry, out: Path, globs: Sequence[str]
) -> dict[str, Any]:
    """Write `out/triton` for every architecture that `globs` name; returns what was compiled, and what was not and why."""
    if interpreted():
        raise UnavailableError("TRITON_INTERPRET=1 is set, and the interpreter compiles nothing", fix="unset TRITON_INTERPRET")
    calls = {site[0].path: site for site in sites}
    emitted = {path: choice.emit for choice in plan if choice.emit for path in calls[choice.path][0].consumers}
    handed = {choice.path: choice.emit for choice in plan if choice.emit in SUMS}
    rows: list[Compiled] = []
    skipped: dict[str, str] = {}
    with _cache(out / FOLDER):
        for capability in targets(globs):
            found: dict[str, Compiled] = {}
            with _compiling(capability) as built:
                for choice, call in _distinct(plan, calls, emitted):
                    built.clear()
                    try:
                        _call(choice, call, emitted.get(choice.path), handed, registry)
                    except Exception as error:  # noqa: BLE001 - one kernel that needs values must not end the others
                        skipped[f"{choice.kernel} {choice.op} {choice.precision}"] = _first(error)
                    for kernel in built:
                        name, key = kernel.metadata.name, kernel.hash
                        count = found[key].sites + 1 if key in found else 1
                        found[key] = Compiled(name, f"sm_{capability}", key, kernel.metadata.shared, count)
            rows += found.values()
    return {
        "kernels": [vars(row) for row in rows],
        "not compiled": skipped,
        "targets": [f"sm_{capability}" for capability in targets(globs)],
        "versions": {"triton": triton.__version__, "torch": torch.__version__},
        "measured_by": "the compiler; nothing ran on a GPU",
    }


def _distinct(
    plan: Plan, calls: Mapping[str, Sequence[Call]], emitted: Mapping[str, str | None]
) -> Iterator[tuple[Choice, Call]]:
    """One call of each kind that runs one of our Triton kernels."""
    seen = set()
    for choice in plan:
        if not choice.kernel.startswith("cuda/triton"):
            continue
        for call in calls[choice.path]:
            key = (choice.kernel, choice.precision, choice.emit, emitted.get(choice.path), repr(sorted(call.args.items())))
            if key not in seen:
                seen.add(key)
                yield choice, call


def _call(choice: Choice, call: Call, scheme: str | None, handed: Mapping[str, str | None], registry: Registry) -> None:
    """Run one site's kernel on meta tensors; `handed` are the schemes of producers that bring sums along."""
    from turbort import ops

    kernel = find_kernel(choice, registry)
    given = {name: _meta(value) if isinstance(value, TensorSpec) else value for name, value in call.args.items()}
    if call.op == "linear":
        weight, named = given["weight"].flatten(1), PRECISIONS[choice.precision].weight_scheme
        dtype = None if named else getattr(torch, DTYPES[choice.precision])
        packed: Any = quantize(weight.to(torch.float32), named) if named else weight.to(dtype)
        pack = kernel.load_pack()
        given["weight"] = pack(packed) if pack else packed
        given["x"] = quantize(given["x"], scheme) if scheme else given["x"]
    for name, maker in call.makers.items():
        if handed.get(maker):
            given[name] = quantize(given[name], str(handed[maker]))
    bound_function(choice, kernel, getattr(ops, call.op))(**given)


def _meta(spec: TensorSpec) -> torch.Tensor:
    assert spec.dtype not in SCHEMES  # recording sees plain tensors only
    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta")


@contextmanager
def _compiling(capability: int) -> Iterator[list[Any]]:
    """Launches compile for an architecture and do nothing else; yields the list to which each adds its kernel."""
    built: list[Any] = []
    launch, before = JITFunction.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        built.append(kernel)
        return kernel

    driver.set_active(_Driver(capability))
    JITFunction.run = compile_only
    try:
        with pretending(capability), torch.inference_mode():
            yield built
    finally:
        JITFunction.run = launch
        driver._active = before


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Triton keeps what it compiles in `folder`, names without the folder's own path."""
    folder.mkdir(parents=True, exist_ok=True)
    with knobs.cache.scope():
        knobs.cache.dir = str(folder.resolve())
        yield
    for lock in folder.rglob("lock"):
        os.unlink(lock)
    for group in folder.rglob("__grp__*"):
        names = json.loads(group.read_text(encoding="utf-8"))["child_paths"]
        group.write_text(json.dumps({"child_paths": {name: Path(path).name for name, path in names.items()}}), encoding="utf-8")


class Shipped(FileCacheManager):  # type: ignore[misc]
    """Triton's cache, which first looks among the kernels that were compiled ahead of time."""

    folders: tuple[Path, ...] = ()
    hits = 0

    def get_group(self, filename: str) -> dict[str, str] | None:
        for folder in Shipped.folders:
            place = folder / self.key
            try:
                names = json.loads((place / f"__grp__{filename}").read_text(encoding="utf-8"))["child_paths"]
            except (OSError, ValueError, KeyError):
                continue
            here = {name: str(place / Path(path).name) for name, path in names.items()}
            if all(os.path.exists(path) for path in here.values()):
                Shipped.hits += 1
                return here
        rest: dict[str, str] | None = super().get_group(filename)
        return rest


def use(folder: Path) -> None:
    """From now on kernels come from `folder` (of `turbort compile`) where it has them; others are compiled as always."""
    Shipped.folders = (*Shipped.folders, (folder / FOLDER).resolve())
    knobs.cache.manager_class = Shipped


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
