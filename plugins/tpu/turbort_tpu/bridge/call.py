"""Functions of JAX arrays that a torch model can call, whichever executor runs them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import torch
from torch import Tensor

from turbort.quant.qtensor import QTensor
from turbort_tpu.bridge.convert import spec_of
from turbort_tpu.bridge.executor import active
from turbort_tpu.bridge.pack import FloatWeight, ScaledWeight
from turbort_tpu.kernels import common


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "scales"], meta_fields=["dtype"])
@dataclass(frozen=True)
class Codes:
    """A row-quantised activation inside JAX: codes, scales [..., 1] and the name of the float dtype they stand for."""

    values: Any
    scales: Any
    dtype: str


def jax_op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of JAX arrays callable with torch tensors.

    Tensors become arrays, QTensors become `Codes`, packed weights stay what they are, everything else is static and
    must be hashable. It returns an array, `Codes`, or a tuple of these; keyword `emit` names the scheme of `Codes`.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        leaves: list[Tensor] = []
        weights: list[Any] = []
        call = Call(
            function,
            tuple(_template(value, leaves, weights) for value in args),
            tuple((name, _template(value, leaves, weights)) for name, value in kwargs.items()),
        )
        dtype = next((t.dtype for t in leaves if t.is_floating_point()), torch.float32)
        structure, tensors = active().call(call, weights, leaves)
        return _rebuilt(structure, iter(tensors), kwargs.get("emit"), dtype)

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
class Call:
    """A call with its tensors taken out: hashable, so that equal calls share one compiled program."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """What programs and custom ops are called."""
        return str(self.function.__name__)

    @property
    def text(self) -> str:
        """All of it in words, the same in every process."""
        return f"{self.function.__module__}.{self.function.__qualname__} {self.args!r} {self.kwargs!r}"

    def __call__(self, weights: list[Any], arrays: list[Any]) -> Any:
        def fill(value: Any) -> Any:
            if not isinstance(value, _Slot):
                return value
            if value.kind == "weight":
                return weights[value.index]
            if value.kind == "array":
                return arrays[value.index]
            return Codes(arrays[value.index], arrays[value.index + 1], value.kind)

        return self.function(*(fill(value) for value in self.args), **{name: fill(value) for name, value in self.kwargs})


@dataclass(frozen=True)
class Flat:
    """`call` on one flat list, as bridges to torch want it: first `count` arrays, then the parts of the weights.

    Returns a flat list of arrays. `mode` is the way Pallas runs (`kernels.common.pallas`).
    """

    call: Call
    count: int
    form: Any
    mode: str

    @classmethod
    def of(cls, call: Call, weights: list[Any], tensors: list[Tensor], mode: str) -> tuple[Flat, list[Tensor]]:
        """The function and the tensors to give it."""
        parts, form = jax.tree.flatten(weights)
        return cls(call, len(tensors), form, mode), [*tensors, *parts]

    def __call__(self, *arrays: Any) -> list[Any]:
        return list(jax.tree.leaves(self.tree(*arrays)))

    def tree(self, *arrays: Any) -> Any:
        """The outputs in their structure."""
        with common.pallas(self.mode):
            return self.call(jax.tree.unflatten(self.form, arrays[self.count :]), list(arrays[: self.count]))

    def outputs(self, tensors: list[Tensor]) -> Any:
        """Shapes and dtypes of the outputs for these tensors, as a pytree; nothing is computed."""
        return _shapes(self, tuple((tuple(t.shape), t.dtype) for t in tensors))


@functools.lru_cache(maxsize=4096)
def _shapes(flat: Flat, specs: tuple[tuple[tuple[int, ...], torch.dtype], ...]) -> Any:
    return jax.eval_shape(flat.tree, *(spec_of(torch.empty(shape, dtype=dtype, device="meta")) for shape, dtype in specs))


def _rebuilt(output: Any, tensors: Iterator[Tensor], emit: str | None, dtype: torch.dtype) -> Any:
    """`tensors` in the structure of `output`, with codes as QTensors."""
    if isinstance(output, tuple):
        return tuple(_rebuilt(part, tensors, emit, dtype) for part in output)
    if isinstance(output, Codes):
        return QTensor(str(emit), next(tensors), next(tensors), dtype)
    return next(tensors)
