"""Fake quantisation for training: the forward rounds exactly as `quantize` does, the gradient passes through."""

from __future__ import annotations

import torch
from torch import Tensor

from turbort.quant.bsq import apply_mask
from turbort.quant.schemes import decode, encode


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value` in x's dtype, with the gradient of x.

    Written with plain tensor operations: under torch.compile, torch 2.11 returns zero gradients for a custom
    autograd function whose forward ends in a cast that changes nothing.
    """
    return value.detach().to(x.dtype) + (x - x.detach())


def fake_quant(x: Tensor, scheme: str, *, tile: int = 8, mask: Tensor | None = None) -> Tensor:
    """`dequantize(quantize(x, scheme))` bit for bit for finite x, with dy/dx = 1 (straight-through estimator).

    With `mask` (block-sparse schemes) dropped tiles are zero and dy/dx = 0 there.
    """
    if mask is not None:
        x = apply_mask(x, tile, mask)
    with torch.no_grad():
        values, scales, _ = encode(x.detach(), scheme, tile=tile, mask=mask)
        rounded = decode(values, scales, scheme, tile=tile)
    return straight_through(x, rounded)
