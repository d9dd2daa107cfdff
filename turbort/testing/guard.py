"""Guarded memory: guard elements around inputs and outputs, and fresh allocations that hold no usable value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GUARD = 512
"""Elements on each side; a multiple of every alignment that kernels ask for, so that guarding changes no code path."""

NO_STORAGE = frozenset({"meta", "xla"})
"""Device types whose tensors have no memory of their own to guard."""

ALLOCATORS = frozenset(
    {
        torch.empty,
        torch.empty_like,
        torch.empty_strided,
        torch.empty_permuted,
        torch.Tensor.new_empty,
        torch.Tensor.new_empty_strided,
    }
)


def poison_value(dtype: torch.dtype) -> float | int | bool:
    """A value that ruins a result: NaN for floats, the lowest value for integers."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype is torch.bool else torch.iinfo(dtype).min if dtype.is_signed else torch.iinfo(dtype).max


class Guards:
    """Blocks of memory with known values around a tensor; `damage()` says which were overwritten."""

    def __init__(self) -> None:
        self._blocks: list[tuple[str, Tensor, int]] = []

    def around(self, name: str, shape: torch.Size, stride: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised (poisoned) tensor of this shape and stride between two guards."""
        span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if like.numel() else 0
        base = torch.full((span + 2 * GUARD,), poison_value(like.dtype), dtype=like.dtype, device=like.device)
        self._blocks.append((name, base, span))
        return base.as_strided(shape, stride, GUARD)

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """A contiguous copy of `tensor` between guards."""
        if not guardable(tensor):
            return tensor.clone()
        plain = tensor.contiguous()
        inner = self.around(name, plain.shape, plain.stride(), plain)
        return inner.copy_(plain)

    def damage(self) -> list[str]:
        """Names of the blocks whose guards no longer hold their value."""
        return [name for name, base, span in self._blocks if not (_intact(base[:GUARD]) and _intact(base[GUARD + span :]))]


def guardable(tensor: Tensor) -> bool:
    """Whether the tensor has ordinary memory that can be surrounded."""
    return tensor.layout is torch.strided and tensor.device.type not in NO_STORAGE and not tensor.is_quantized


def _intact(guard: Tensor) -> bool:
    if guard.dtype.itemsize == 1:
        expected = torch.full_like(guard, poison_value(guard.dtype))
        return bool((guard.view(torch.uint8) == expected.view(torch.uint8)).all())
    if guard.is_floating_point() or guard.is_complex():
        return bool(guard.isnan().all())
    return bool((guard == poison_value(guard.dtype)).all())


class Poison(TorchFunctionMode):
    """While active, `torch.empty` and its kin return poisoned memory between guards.

    An output element that a kernel does not write is then NaN, and a write past the end is found by `guards`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guards = Guards()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in ALLOCATORS and isinstance(result, Tensor) and guardable(result) and not result.is_pinned():
            return self.guards.around("an allocation of the kernel", result.shape, result.stride(), result)
        return result


def wide_rows(tensor: Tensor) -> Tensor:
    """The same values as a slice of wider rows, one element off every alignment (a chunk of a fused qkv)."""
    if tensor.dim() == 0 or not tensor.numel():
        return tensor
    base = torch.full(
        (*tensor.shape[:-1], tensor.shape[-1] + 9), poison_value(tensor.dtype), dtype=tensor.dtype, device=tensor.device
    )
    view = base[..., 1 : 1 + tensor.shape[-1]]
    view.copy_(tensor)
    return view


def swapped(tensor: Tensor) -> Tensor:
    """The same values with the last two axes swapped in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2) if tensor.dim() > 1 else tensor
