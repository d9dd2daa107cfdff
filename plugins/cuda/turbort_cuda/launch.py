"""What every launch needs: the device's generation, its multiprocessors, and activations as rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

ALIGNMENT = 16
"""Bytes that the base address and every row stride of a tensor descriptor must be multiples of."""


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


_PRETENDED: ContextVar[int | None] = ContextVar("capability", default=None)


@contextmanager
def pretending(capability: int) -> Iterator[None]:
    """Within the block every device has this compute capability (times ten): kernels are chosen as they would be there."""
    token = _PRETENDED.set(capability)
    try:
        yield
    finally:
        _PRETENDED.reset(token)


def capability(device: torch.device) -> int:
    """Ten times the compute capability; 0 for the interpreter."""
    pretended = _PRETENDED.get()
    return _capability(device) if pretended is None else pretended


@cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs of a persistent kernel run at once, one per multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch on `device`: Triton launches on torch's current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def rows_of(x: Tensor) -> Tensor:
    """[..., K] as a matrix [M, K] whose rows are contiguous; copies only where strides leave no other way."""
    matrix = x.reshape(-1, x.shape[-1])
    return matrix if matrix.stride(-1) == 1 and matrix.stride(0) >= matrix.shape[1] else matrix.contiguous()


def describable(x: Tensor) -> bool:
    """Whether a TMA descriptor can address this matrix."""
    aligned = x.data_ptr() % ALIGNMENT == 0 and (x.stride(0) * x.element_size()) % ALIGNMENT == 0
    return aligned and x.stride(-1) == 1 and min(x.shape) > 0


def descriptor(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A descriptor for blocks of `rows` x `columns` of a matrix."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns])


def three(x: Tensor, batch: int, length: int) -> tuple[Tensor, int, int]:
    """A tensor [B, L | 1, N] or [1, 1, N] with its strides of batch and row, 0 where one serves all."""
    x = x if x.dim() == 3 else x.reshape(-1, 1, x.shape[-1])
    x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    return x, x.stride(0) if x.shape[0] == batch and batch > 1 else 0, x.stride(1) if x.shape[1] == length and length > 1 else 0


if interpreted():
    from turbort_cuda.interpreter import correct

    correct()
