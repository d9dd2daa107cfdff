"""Trees of tensors: what goes into an op and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from turbort.kernel import TensorSpec
from turbort.quant.qtensor import QTensor

Leaf = Tensor | QTensor


def leaves(output: Any, path: str = "output") -> list[tuple[str, Leaf]]:
    """The tensors of an op's result with a name each; raises TypeError for anything that is no tensor."""
    if isinstance(output, (Tensor, QTensor)):
        return [(path, output)]
    if isinstance(output, (tuple, list)):
        return [leaf for i, part in enumerate(output) for leaf in leaves(part, f"{path}[{i}]")]
    raise TypeError(f"{path} is a {type(output).__name__}, not a tensor, a QTensor or a tuple of them")


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor inside any value, also inside packed objects of a kernel's own class."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))
    elif hasattr(value, "__dict__") and not isinstance(value, (type, torch.device)):
        for part in vars(value).values():
            if isinstance(part, (Tensor, tuple, list, dict)):
                yield from tensors(part)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it (not inside packed objects) replaced by `change(tensor)`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, QTensor):
        mask = None if value.mask is None else change(value.mask)
        return QTensor(value.scheme, change(value.values), change(value.scales), value.dtype, mask, value.tile)
    if isinstance(value, tuple):
        return tuple(mapped(part, change) for part in value)
    if isinstance(value, list):
        return [mapped(part, change) for part in value]
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    return value


def widened(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in `dtype`; integers, masks and scalars as they are."""
    return mapped(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def snapshot(value: Any) -> list[Tensor]:
    """Copies of all tensors in `value`, in a fixed order; tensors whose memory cannot be read are left out."""
    return [copy for tensor in tensors(value) if (copy := _copied(tensor.detach())) is not None]


def _copied(tensor: Tensor) -> Tensor | None:
    if tensor.layout is torch.strided:
        return tensor.clone()
    try:  # a library's own layout, such as oneDNN's blocked weights
        return tensor.to_dense()
    except (RuntimeError, NotImplementedError):
        return None


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits (NaN equals the same NaN)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.detach().to("cpu").contiguous(), b.detach().to("cpu").contiguous()
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def all_same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of tensors agree bit by bit."""
    return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))


def spec_of(value: Any) -> Any:
    """What a kernel's `rejects` sees of an argument, as the planner would show it."""
    if isinstance(value, QTensor):
        return TensorSpec(tuple(value.shape), value.scheme)
    if isinstance(value, Tensor):
        return TensorSpec(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    return value
