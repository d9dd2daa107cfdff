"""Every distinct op call of a plan, made real: on meta for torch-npu's Meta kernels, on npu for its C++ adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import turbort_ascend
from torch import Tensor

from ascend_host.recording import recorded
from turbort.backend import Device
from turbort.bind import bound_function, find_kernel
from turbort.kernel import Call, TensorSpec
from turbort.models.sites import record_model
from turbort.models.spec import MODELS
from turbort.plan import Choice
from turbort.planner import DTYPES, Planner, Target
from turbort.precision import PRECISIONS
from turbort.profile import load_profile
from turbort.quant.qtensor import QTensor
from turbort.registry import Registry
from turbort.testing.oracle import Inputs

PROFILES: Mapping[str, str] = {
    "Ascend910B3": "ascend910",
    "Ascend910_9391": "ascend910",
    "Ascend310P3": "ascend310p",
    "Ascend950PR_9589": "ascend950",
}
NO_META = ("w4a16", "w4a8")
"""Precisions whose packing torch-npu has no Meta kernel for (`npu_convert_weight_to_int4pack`)."""


@dataclass(frozen=True)
class Asked:
    """One distinct call: what is asked of which kernel, and at how many sites."""

    call: Call
    choice: Choice
    tokens: bool
    sites: int

    @property
    def title(self) -> str:
        """`linear quant-matmul w8a8 -> int8-token: x int8-token 1x32760x1536, weight 1536x1536`."""
        head = f"{self.call.op} {self.choice.kernel} {self.choice.precision}" + (
            f" -> {self.choice.emit}" if self.choice.emit else ""
        )
        parts = []
        for name, value in self.call.args.items():
            if isinstance(value, TensorSpec):
                kind = "int8-token" if self.tokens and name == "x" else value.dtype
                parts.append(f"{name} {kind} {value}")
            elif value is not None:
                parts.append(f"{name}={value}")
        return f"{head}: {', '.join(parts)}"


@cache
def registry() -> Registry:
    """The installed plugins, with this one added where it is not installed."""
    found = Registry()
    return found if "ascend" in found.backends else Registry(extra=[turbort_ascend])


def asked(model: str, device: Device, *, sla: bool = True) -> list[Asked]:
    """The distinct calls of a model's plan at its default size on `device`, in the order of first use."""
    spec, profile = MODELS[model], load_profile(PROFILES[device.arch])
    if sla and spec.dit.sla is None:
        from turbort.models.config import Sla

        spec = replace(spec, dit=replace(spec.dit, sla=Sla(profile.attention.topk, profile.attention.block)))
    wish, size = profile.precision, spec.defaults
    sites = record_model(
        spec, attention=profile.attention, dtype=DTYPES[wish.compute], vae_dtype=DTYPES[wish.vae],
        width=size.width, height=size.height, frames=size.frames, batch=1,
    )  # fmt: skip
    choices = Planner(profile, registry(), Target("ascend", device)).plan(sites)
    quantised = {path for calls, choice in zip(sites, choices, strict=True) if choice.emit for path in calls[0].consumers}
    found: dict[str, Asked] = {}
    for calls, choice in zip(sites, choices, strict=True):
        for call in calls:
            one = Asked(call, choice, call.path in quantised, 1)
            found[one.title] = replace(one, sites=found[one.title].sites + 1) if one.title in found else one
    return list(found.values())


def one_of_each(device: Device) -> list[Asked]:
    """Every kernel and precision that the device can have, on the first of its op's samples that it takes.

    Plans use the best kernel only; this also shows what the others ask, and what they ask when they hand over codes.
    """
    found = []
    device = replace(device, features=device.features | {"fused"})
    for kernel in registry().kernels("ascend"):
        spec = registry().ops[kernel.op]
        for precision in kernel.precisions if not kernel.requires - device.features else ():
            dtype = DTYPES.get(precision, "float16" if "bfloat16" not in device.dtypes else "bfloat16")
            for sample in spec.samples() if dtype in device.dtypes else ():
                made = sample.make(torch.Generator(), getattr(torch, dtype), torch.device("meta"))
                call = Inputs(made).call(spec.name)
                if kernel.refusal(call, precision, device) is None and call["emit"] in (None, *kernel.emits):
                    choice = Choice(sample.id, kernel.op, "one of each", precision, f"ascend/{kernel.name}")
                    found.append(Asked(call, choice, False, 1))
                    found += [Asked(call, replace(choice, emit=scheme), False, 1) for scheme in kernel.emits]
                    break
    return found


def perform(one: Asked, where: str) -> Any:
    """Make the arguments on `where` (uninitialised) and call the kernel as a bound plan would."""
    kernel = find_kernel(one.choice, registry())
    op = registry().ops[one.call.op]
    arguments = {name: _made(value, where) for name, value in one.call.args.items()}
    if one.tokens:
        arguments["x"] = _quantised(one.call["x"], "int8-token", where)
    scheme = PRECISIONS[one.choice.precision].weight_scheme
    pack = kernel.load_pack()
    for name in op.weights:
        weight = _quantised(one.call[name], scheme, where) if scheme else arguments[name]
        arguments[name] = pack(weight) if pack else weight
    bound = op.signature.bind(**arguments)
    with torch.no_grad():
        return bound_function(one.choice, kernel, op)(*bound.args, **bound.kwargs)


def _made(value: Any, where: str) -> Any:
    if not isinstance(value, TensorSpec):
        return value
    return torch.empty(value.shape, dtype=getattr(torch, value.dtype), device=where)


def _quantised(spec: TensorSpec, scheme: str, where: str) -> QTensor:
    """Codes and scales without values, in the shapes of `turbort.quant.schemes`."""
    codes = torch.empty(spec.shape, dtype=torch.int8, device=where)
    last = -(-spec.shape[-1] // 128) if scheme == "int4-group128" else 1
    scales = torch.empty((*spec.shape[:-1], last), dtype=torch.float32, device=where)
    dtype = getattr(torch, spec.dtype)
    return QTensor(scheme, codes, scales, dtype if dtype.is_floating_point else torch.bfloat16)


def form(output: Any) -> list[str]:
    """Shapes and dtypes of a result, for comparing one device's with another's."""
    if isinstance(output, QTensor):
        return [*form(output.values), *form(output.scales)]
    if isinstance(output, Tensor):
        return [f"{str(output.dtype).removeprefix('torch.')} {'x'.join(map(str, output.shape))}"]
    return [line for part in output for line in form(part)]


def packed_nz(device: Device) -> Iterator[str]:
    """What a w8a8 linear asks when its weight is kept in FRACTAL_NZ: the cast, then the product."""
    import os

    from turbort_ascend.kernels import linear

    before = os.environ.get(linear.NZ)
    os.environ[linear.NZ] = "1"
    try:
        weight = _quantised(TensorSpec((8960, 1536), "bfloat16"), "int8-channel", device.torch_name)
        x = _quantised(TensorSpec((1, 32760, 1536), "bfloat16"), "int8-token", device.torch_name)
        with recorded() as lines:
            linear.linear_w8a8(x, linear.pack_w8a8(weight))
    finally:
        os.environ.pop(linear.NZ) if before is None else os.environ.update({linear.NZ: before})
    yield from lines


def transcript(model: str, device: Device) -> Iterator[str]:
    """What each distinct call of the plan asks of the device: the golden file of one model on one chip."""
    if model == "w8a8-nz":
        yield from packed_nz(device)
        return
    for one in one_of_each(device) if model == "one-of-each" else asked(model, device):
        wanted = form(perform(one, "meta")) if one.choice.precision not in NO_META else None
        with recorded() as lines:
            got = form(perform(one, device.torch_name))
        if wanted is not None and wanted != got:
            raise AssertionError(f"{one.title}: Meta kernels say {wanted}, the adapters made {got}")
        yield f"{one.title}  ({one.sites} sites)"
        yield from (f"    {line}" for line in folded(lines))
        yield ""


def folded(lines: list[str]) -> Iterator[str]:
    """Repeated runs of lines as one with a count, so that a loop over chunks stays readable."""
    at = 0
    while at < len(lines):
        length, times = _loop(lines, at)
        yield from (f"{line}  x{times}" if times > 1 else line for line in lines[at : at + length])
        at += length * times


def _loop(lines: list[str], at: int) -> tuple[int, int]:
    """The longest repetition that starts at `at`: lines in one round, and rounds."""
    best = (1, 1)
    for length in range(1, 25):
        times = 1
        while lines[at + times * length : at + (times + 1) * length] == lines[at : at + length] and at + (
            times + 1
        ) * length <= len(lines):
            times += 1
        if times > 1 and length * times > best[0] * best[1]:
            best = (length, times)
    return best
