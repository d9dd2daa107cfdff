"""Fake quantisation for training: the forward rounds exactly as `quantize` does, the gradient passes through."""

from __future__ import annotations

import torch
from torch import Tensor

from turbort.quant.schemes import decode, encode


def fake_quant(x: Tensor, scheme: str, *, tile: int = 8) -> Tensor:
    """`dequantize(quantize(x, scheme))` bit for bit for finite x, with dy/dx = 1 (straight-through estimator).

    Written with plain tensor operations: under torch.compile, torch 2.11 returns zero gradients for a custom
    autograd function whose forward ends in a cast that changes nothing.
    """
    frozen = x.detach()
    with torch.no_grad():
        values, scales, _ = encode(frozen, scheme, tile=tile)
        rounded = decode(values, scales, scheme, tile=tile).to(x.dtype)
    return rounded + (x - frozen)
