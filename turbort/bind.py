"""Binding: store the plan's kernels on a model and place its weights in the form they want."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from turbort.errors import PlanError
from turbort.kernel import Kernel
from turbort.models.dit_layers import TokenGrid
from turbort.op import OpSpec, Slot, counted, slots
from turbort.ops import quantize_time
from turbort.plan import Choice, Plan
from turbort.planner import DTYPES
from turbort.precision import PRECISIONS
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize
from turbort.registry import Registry


def find_kernel(choice: Choice, registry: Registry) -> Kernel:
    """The kernel a plan line names; PlanError when no installed backend has it."""
    backend, _, name = choice.kernel.partition("/")
    rows = registry.kernels(backend, choice.op)
    for kernel in rows:
        if kernel.name == name:
            return kernel
    raise PlanError(
        f"the plan names kernel {choice.kernel} for {choice.op}, which is not installed",
        tried=[f"{backend} has {', '.join(kernel.name for kernel in rows) or 'none'}"],
        fix="make the plan again with `turbort plan`",
    )


def bound_function(choice: Choice, kernel: Kernel, op: OpSpec) -> Callable[..., Any]:
    """The callable of a site: the kernel's function with `precision` and `emit` filled in."""
    loaded = kernel.load()
    function = loaded.reference if isinstance(loaded, OpSpec) else loaded
    fixed: dict[str, Any] = {}
    if op.takes_precision and PRECISIONS[choice.precision].kind != "float":
        fixed["precision"] = choice.precision
    if choice.emit:
        fixed["emit"] = choice.emit
    return partial(function, **fixed) if fixed else function


def time_scaled(choice: Choice, kernel: Kernel, op: OpSpec, registry: Registry, tokens: TokenGrid) -> Callable[..., Any]:
    """The callable of a site that quantises with scales shared along time, by the kernel `choice.time_scales`.

    A producer computes plain values, which become codes; a linear that would quantise its own input is handed codes. The frames
    are read from `tokens` at every call, so one binding serves videos of any length; `tokens` also counts what ran.
    """
    named = str(choice.time_scales)
    made = find_kernel(replace(choice, op="quantize_time", kernel=named), registry).load()
    quantise = Slot(quantize_time, choice.role)
    quantise.bind(made.reference if isinstance(made, OpSpec) else made, provider=named, precision=tokens.precision)
    tokens.quantisers[choice.path.partition("/")[2]] = quantise
    function = bound_function(replace(choice, emit=None), kernel, op)
    if choice.emit is None:
        scheme = str(PRECISIONS[choice.precision].emit)

        def reader(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            return function(quantise(x, emit=scheme, frames=tokens.frames), *args, **kwargs)

        return reader

    def producer(*args: Any, emit: str | None = None, **kwargs: Any) -> Any:
        output = function(*args, **kwargs)
        if emit is None:
            return output
        if isinstance(output, tuple):
            return *output[:-1], quantise(output[-1], emit=emit, frames=tokens.frames)
        return quantise(output, emit=emit, frames=tokens.frames)

    # Like every emitting site a partial with `emit`: whoever times quantising takes that away.
    return partial(producer, emit=choice.emit)


def _tokens(model: nn.Module, choice: Choice, plan: Plan) -> TokenGrid:
    """The model's grid; PlanError for a model without one."""
    tokens = getattr(model, "tokens", None)
    if not isinstance(tokens, TokenGrid):
        raise PlanError(
            f"the plan shares scales along time at {choice.path}, in a model without a grid of tokens",
            fix="make the plan again with `turbort plan`",
        )
    tokens.precision = str(plan.header.get("compute", "bf16"))
    return tokens


class Binder:
    """Binds one stage (`dit`, `vae`) of a model to a plan and takes its weights one by one.

    Weights arrive as plain tensors or QTensors in any order; each is brought into the precision of its site,
    packed by the site's kernel and put on the device, so that no more than one layer is held twice.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, stage: str, registry: Registry, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self.also: Callable[[str, Tensor | QTensor, Sequence[int]], None] | None = None
        """Sees every weight that a kernel packs, with its name and the parameter's shape, before it is placed."""
        self._choices: dict[int, tuple[Choice, Kernel]] = {}
        wanted = {choice.path: choice for choice in plan if choice.path.startswith(f"{stage}/")}
        for path, slot in slots(model).items():
            choice = wanted.pop(f"{stage}/{path}", None)
            if choice is None:
                continue  # not reached when this model makes a video (the encoder of a text-to-video run)
            kernel = find_kernel(choice, registry)
            if choice.time_scales is None:
                function = bound_function(choice, kernel, slot.op)
            else:
                function = time_scaled(choice, kernel, slot.op, registry, _tokens(model, choice, plan))
            slot.bind(function, provider=choice.kernel, precision=choice.precision)
            self._choices[id(slot)] = choice, kernel
        if wanted:
            raise PlanError(
                f"the plan has {len(wanted)} call sites that the model lacks, such as {next(iter(wanted))}",
                fix="make the plan again with `turbort plan` for this model and profile",
            )

    def prepare(self, name: str, value: Tensor | QTensor) -> Tensor | QTensor:
        """The same weight in the host's memory for `place` to take later, pinned where the device has it.

        Where an accelerator is there, it does the arithmetic: codes in another scheme wait as they are stored, and wide
        weights are quantised on the device and brought back, because a host would take minutes for a large model.
        """
        found = self._site(name)
        scheme = PRECISIONS[found[0].precision].weight_scheme if found else None
        if isinstance(value, QTensor):
            if value.scheme == scheme or (scheme and self.device.type != "cpu"):
                return value.mapped(self._waiting)
            value = value.dequantize(torch.float32 if scheme else None)
        if scheme is None:
            return self._waiting(value)
        return quantize(value.to(self.device).to(torch.float32).flatten(1), scheme).to("cpu").mapped(self._waiting)

    def _waiting(self, tensor: Tensor) -> Tensor:
        """A copy: the tensor may be a view of a mapped file, which would be read only when it is used."""
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.device.type == "cuda").copy_(tensor)

    def _site(self, name: str) -> tuple[Choice, Kernel] | None:
        """Choice and kernel of the call site that reads the weight `name`; None for parameters that no kernel packs."""
        owner, _, attribute = name.rpartition(".")
        slot = vars(self.model.get_submodule(owner)).get("op")
        return self._choices.get(id(slot)) if isinstance(slot, Slot) and attribute in slot.op.weights else None

    def place(self, name: str, value: Tensor | QTensor) -> None:
        """Put the parameter `name` (dotted path in the model) in place."""
        owner, _, attribute = name.rpartition(".")
        module = self.model.get_submodule(owner)
        site = self._site(name)
        packed: Any
        if site is not None:
            like: Any = module._parameters[attribute]
            if self.also is not None:
                self.also(name, value, like.shape)
            packed = pack_weight(value, *site, shape=like.shape, device=self.device)
        else:
            packed = self._laid_out(module, self._plain(name, value, self.dtype))
        del module._parameters[attribute]
        if isinstance(packed, Tensor):
            setattr(module, attribute, nn.Parameter(packed, requires_grad=False))
        else:
            setattr(module, attribute, packed)

    def _laid_out(self, module: nn.Module, value: Tensor) -> Tensor:
        """A convolution's weight in the layout of its kernel, so that no call and no cache makes a second copy of it."""
        found = self._choices.get(id(vars(module).get("op")))
        if found is None or found[1].layout != "channels_last" or value.ndim != 5:
            return value
        return value.contiguous(memory_format=torch.channels_last_3d)

    def _plain(self, name: str, value: Tensor | QTensor, dtype: torch.dtype) -> Tensor:
        keep = any(part in name for part in getattr(self.model, "fp32", ()))
        target = torch.float32 if keep else dtype
        # Stored bytes travel, not wider ones made from them on the host.
        there = value.to(self.device)
        return (there.dequantize(target) if isinstance(there, QTensor) else there.to(target)).contiguous()

    def expected(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the parameters still waiting on meta."""
        return {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters() if parameter.is_meta}


def pack_weight(value: Tensor | QTensor, choice: Choice, kernel: Kernel, *, shape: Sequence[int], device: torch.device) -> Any:
    """A weight in the precision of a site, in the form its kernel wants, on the device; `shape` is the parameter's own."""
    scheme = PRECISIONS[choice.precision].weight_scheme
    there = value.to(device)
    weight: Tensor | QTensor
    if scheme is None:
        dtype = getattr(torch, DTYPES[choice.precision])
        plain = there.dequantize(dtype) if isinstance(there, QTensor) else there.to(dtype)
        weight = plain.reshape(tuple(shape)).contiguous()
    elif isinstance(there, QTensor) and there.scheme == scheme:
        weight = there
    else:
        full = there.dequantize(torch.float32) if isinstance(there, QTensor) else there.to(torch.float32)
        weight = quantize(full.flatten(1), scheme)
    pack = kernel.load_pack()
    return pack(weight) if pack else weight


def executed(model: nn.Module, stage: str) -> list[dict[str, Any]]:
    """What really ran since binding, grouped: op, provider, precision, sites and calls."""
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for slot in counted(model).values():
        for (provider, precision), calls in slot.counts().items():
            key = (slot.op.name, provider, precision or "unplanned")
            row = groups.setdefault(
                key, {"stage": stage, "op": key[0], "provider": key[1], "precision": key[2], "sites": 0, "calls": 0}
            )
            row["sites"] += 1
            row["calls"] += calls
    return list(groups.values())
