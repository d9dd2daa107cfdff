"""A plan's Triton kernels as AscendNPU IR, for chips that are not here.

The plan's own functions are called on meta tensors with launches that only note types and constants; each noted kernel then goes
through Triton-Ascend and Huawei's compiler. What is written is the linalg form and the module before the closed last step
(`hivmc`), which is CANN's: evidence that the kernels are accepted, and the place to read what the compiler made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbort.bind import bound_function, find_kernel
from turbort.errors import UnavailableError
from turbort.io import atomic_text
from turbort.kernel import Call, TensorSpec
from turbort.plan import Choice, Plan
from turbort.precision import PRECISIONS
from turbort.quant.schemes import quantize
from turbort.registry import Registry
from turbort_ascend.kernels import triton_ops
from turbort_ascend.lowering import Source, compile_for, missing_compiler, to_linalg
from turbort_ascend.soc import CHIPS

TYPES = {
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
}


def compile_plan(
    plan: Plan, sites: Sequence[Sequence[Call]], registry: Registry, out: Path, globs: Sequence[str]
) -> dict[str, Any]:
    """Write `out/ascend/<chip>/<kernel>.ttadapter` and `.mlir`; returns what the compiler said of each kernel.

    Raises UnavailableError without Triton-Ascend and AscendNPU IR.
    """
    missing = missing_compiler()
    if missing:
        raise UnavailableError(
            f"nothing can be compiled for Ascend here: {missing}", fix="make ascend-ir-venv, and run from there"
        )
    sources = launched(plan, sites, registry)
    rows = []
    for chip in [name for name in CHIPS if any(fnmatchcase(name, glob) for glob in globs)]:
        folder = out / "ascend" / chip
        folder.mkdir(parents=True, exist_ok=True)
        for number, source in enumerate(sources):
            name = f"{source.kernel}-{number}"
            linalg = to_linalg(source, chip)
            atomic_text(folder / f"{name}.ttadapter", linalg)
            made = compile_for(linalg, chip)
            if made.module:
                atomic_text(folder / f"{name}.mlir", made.module)
            rows.append({"kernel": name, "chip": chip, "accepted": made.accepted, "on_chip_bytes": dict(made.memory)})
    return {"kernels": rows, "measured_by": "the vendor's compiler up to its closed last step; nothing ran on a card"}


def launched(plan: Plan, sites: Sequence[Sequence[Call]], registry: Registry) -> list[Source]:
    """Every distinct launch of our Triton kernels that the plan makes."""
    calls = {site[0].path: site[0] for site in sites}
    found: list[Source] = []
    seen = set()
    for choice in plan:
        if not choice.kernel.startswith("ascend/triton"):
            continue
        call = calls[choice.path]
        key = (choice.kernel, choice.precision, repr(sorted(call.args.items())))
        if key not in seen:
            seen.add(key)
            with _noting() as noted:
                _call(choice, call, registry)
            found += [source for source in noted if source not in found]
    return found


def _call(choice: Choice, call: Call, registry: Registry) -> None:
    from turbort import ops

    kernel = find_kernel(choice, registry)
    given = {name: _meta(value) if isinstance(value, TensorSpec) else value for name, value in call.args.items()}
    scheme = PRECISIONS[choice.precision].weight_scheme
    if call.op == "linear" and scheme:
        packed = quantize(given["weight"].flatten(1).to(torch.float32), scheme)
        pack = kernel.load_pack()
        given["weight"] = pack(packed) if pack else packed
    bound_function(choice, kernel, getattr(ops, call.op))(**given)


def _meta(spec: TensorSpec) -> Tensor:
    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta")


class _Launch:
    """Stands in for a Triton kernel: launching it notes its types and constants."""

    def __init__(self, name: str, arguments: Sequence[str], noted: list[Source]) -> None:
        self.name, self.arguments, self.noted = name, arguments, noted

    def __getitem__(self, grid: object) -> Any:
        def note(*args: Any, **constants: int) -> None:
            types = {argument: _type(value) for argument, value in zip(self.arguments, args, strict=False)}
            self.noted.append(Source(self.name, types, constants))

        return note


class _Kernels:
    """Stands in for the module of Triton kernels."""

    def __init__(self, module: Any, noted: list[Source]) -> None:
        self._module, self._noted = module, noted

    def __getattr__(self, name: str) -> _Launch:
        return _Launch(name, getattr(self._module, name).arg_names, self._noted)


@contextmanager
def _noting() -> Iterator[list[Source]]:
    noted: list[Source] = []
    before = triton_ops.kernels
    stand_in = _Kernels(before(), noted)
    triton_ops.kernels = lambda: stand_in  # type: ignore[assignment]
    try:
        with torch.inference_mode():
            yield noted
    finally:
        triton_ops.kernels = before


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"
