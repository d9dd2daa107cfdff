"""Fake quantisation for training: the forward rounds exactly as `quantize` does, the gradient passes through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from turbort.quant.schemes import decode, encode


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scheme: str, tile: int) -> Tensor:
        values, scales, _ = encode(x, scheme, tile=tile)
        return decode(values, scales, scheme, tile=tile).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def fake_quant(x: Tensor, scheme: str, *, tile: int = 8) -> Tensor:
    """`dequantize(quantize(x, scheme))` bit for bit, with dy/dx = 1 (straight-through estimator)."""
    out: Tensor = _StraightThrough.apply(x, scheme, tile)  # type: ignore[no-untyped-call]
    return out
