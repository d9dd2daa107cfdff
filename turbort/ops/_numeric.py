"""Small helpers that every reference uses: wide arithmetic and hand-over in a QTensor scheme."""

from __future__ import annotations

import torch
from torch import Tensor

from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or wider when it already is: statistics and softmax never run in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype a matmul or convolution of `x` runs in: its own, but float32 for float16 on a CPU.

    Few CPUs have float16 arithmetic, and torch's emulation of it is many times slower than float32.
    """
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype


def convolution_dtype(x: Tensor) -> torch.dtype:
    """`compute_dtype` of a convolution: float32 on a CPU for bfloat16, too.

    torch convolves bfloat16 on CPUs with AVX-512 only (where the planner has a kernel of its own); elsewhere its loop
    is 33 times slower than float32. Sums are float32 either way.
    """
    return torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype


def emitted(y: Tensor, emit: str | None) -> Tensor | QTensor:
    """`y` itself, or quantised for its consumer."""
    return y if emit is None else quantize(y, emit)


def no_autocast(x: Tensor) -> torch.autocast:
    """A scope in which matmuls keep the dtype they are given, whatever autocast says outside."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)
