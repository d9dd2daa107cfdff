"""Functions of JAX arrays that a torch model can call: run at once, or left in a trace as one opaque op.

Outside a trace a call converts its tensors, runs the jitted function and converts back. While `step.CompiledStep`
traces a model, the call is written down as `turbort_tpu::site(number, tensors)` and runs later, inside the one program
of the whole step, on arrays that never left the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import torch
from torch import Tensor

from turbort.quant.qtensor import QTensor
from turbort_tpu.jax_executor import runtime
from turbort_tpu.jax_executor.convert import TORCH_DTYPES, spec_of, to_jax, to_torch
from turbort_tpu.jax_executor.pack import FloatWeight, ScaledWeight
from turbort_tpu.kernels import common


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "scales"], meta_fields=["dtype"])
@dataclass(frozen=True)
class Codes:
    """A row-quantised activation inside JAX: codes, scales [..., 1] and the name of the float dtype they stand for."""

    values: Any
    scales: Any
    dtype: str


@dataclass(frozen=True)
class Site:
    """One traced call: a function of (weights, arrays) and the weights it holds."""

    run: Callable[[list[Any], list[Any]], list[Any]]
    weights: list[Any]
    outputs: list[jax.ShapeDtypeStruct]


_trace: ContextVar[list[Site] | None] = ContextVar("trace", default=None)


@contextmanager
def tracing() -> Iterator[list[Site]]:
    """Collect calls instead of running them; yields the list they go to."""
    sites: list[Site] = []
    token = _trace.set(sites)
    try:
        yield sites
    finally:
        _trace.reset(token)


@torch.library.custom_op("turbort_tpu::site", mutates_args=())
def site_op(number: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Stands for call `number` of the trace in progress; it has no torch implementation."""
    raise RuntimeError("a traced site runs in JAX only")


@site_op.register_fake
def _(number: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    sites = _trace.get() or []
    return [torch.empty(out.shape, dtype=TORCH_DTYPES[str(out.dtype)], device="cpu") for out in sites[number].outputs]


def jax_op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of JAX arrays callable with torch tensors.

    Tensors become arrays, QTensors become `Codes`, packed weights stay what they are, everything else is static and
    must be hashable. It returns an array, `Codes`, or a tuple of these; keyword `emit` names the scheme of `Codes`.
    """
    compiled = jax.jit(lambda call, weights, arrays, mode: call(function, weights, arrays), static_argnums=(0, 3))

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        leaves: list[Tensor] = []
        weights: list[Any] = []
        call = _Call(
            tuple(_template(value, leaves, weights) for value in args),
            tuple((name, _template(value, leaves, weights)) for name, value in kwargs.items()),
        )
        form = _Form(kwargs.get("emit"), next((t.dtype for t in leaves if t.is_floating_point()), torch.float32))
        sites = _trace.get()
        if sites is None:
            runtime.start()
            arrays = [to_jax(tensor) for tensor in leaves]
            outputs = compiled(call, weights, arrays, common.mode())
            return form.rebuild(outputs, [to_torch(array) for array in jax.tree.leaves(outputs)])
        run = functools.partial(call, function)
        shapes = jax.eval_shape(run, weights, [spec_of(tensor) for tensor in leaves])
        sites.append(Site(lambda w, a: jax.tree.leaves(run(w, a)), weights, jax.tree.leaves(shapes)))
        return form.rebuild(shapes, torch.ops.turbort_tpu.site(len(sites) - 1, leaves))

    return wrapper


@dataclass(frozen=True)
class _Slot:
    """Which argument goes here: `array` or `weight` number `index`, or codes that stand for the dtype named `kind`."""

    kind: str
    index: int


def _template(value: Any, leaves: list[Tensor], weights: list[Any]) -> Any:
    if isinstance(value, Tensor):
        leaves.append(value)
        return _Slot("array", len(leaves) - 1)
    if isinstance(value, QTensor):
        leaves.extend((value.values, value.scales))
        return _Slot(str(value.dtype).removeprefix("torch."), len(leaves) - 2)
    if isinstance(value, (FloatWeight, ScaledWeight)):
        weights.append(value)
        return _Slot("weight", len(weights) - 1)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class _Call:
    """A call with its tensors taken out: hashable, so that equal calls share one compiled program."""

    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def __call__(self, function: Callable[..., Any], weights: list[Any], arrays: list[Any]) -> Any:
        def fill(value: Any) -> Any:
            if not isinstance(value, _Slot):
                return value
            if value.kind == "weight":
                return weights[value.index]
            if value.kind == "array":
                return arrays[value.index]
            return Codes(arrays[value.index], arrays[value.index + 1], value.kind)

        return function(*(fill(value) for value in self.args), **{name: fill(value) for name, value in self.kwargs})


@dataclass(frozen=True)
class _Form:
    """How the outputs of a call look to torch."""

    emit: str | None
    dtype: torch.dtype

    def rebuild(self, outputs: Any, tensors: list[Tensor]) -> Any:
        """`tensors` in the structure of `outputs`."""
        return self._part(outputs, iter(tensors))

    def _part(self, output: Any, tensors: Iterator[Tensor]) -> Any:
        if isinstance(output, tuple):
            return tuple(self._part(part, tensors) for part in output)
        if isinstance(output, Codes):
            return QTensor(str(self.emit), next(tensors), next(tensors), self.dtype)
        return next(tensors)
