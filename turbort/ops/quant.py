"""Ops whose only job is to hand values over in a quantised scheme."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from turbort.op import op
from turbort.ops._numeric import emitted, wide
from turbort.ops.samples_norm import gelu_quant_samples, quantize_samples, quantize_time_samples
from turbort.quant import schemes
from turbort.quant.qtensor import QTensor


@op(samples=gelu_quant_samples)
def gelu_quant(x: Tensor, *, emit: str | None = None) -> Tensor | QTensor:
    """GELU (tanh form) in float32, rounded to x's dtype, then quantised to `emit` if one is given."""
    return emitted(F.gelu(wide(x), approximate="tanh").to(x.dtype), emit)


@op(samples=quantize_samples)
def quantize(x: Tensor, *, emit: str) -> QTensor:
    """`x` in the QTensor scheme `emit`; see `turbort.quant.schemes`."""
    return schemes.quantize(x, emit)


@op(samples=quantize_time_samples)
def quantize_time(x: Tensor, *, emit: str, frames: int) -> QTensor:
    """`x` [B, frames * P, K] in a token scheme: one scale for each of the P places of a frame, the same in all frames.

    See `turbort.quant.schemes.quantize_time`. Two passes over x: no scale is known before every frame has been read.
    """
    return schemes.quantize_time(x, emit, frames)
