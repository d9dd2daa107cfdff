"""int8 with one scale per row: `int8-token` for activations, `int8-channel` for weights."""

from __future__ import annotations

import torch
from torch import Tensor

TOKEN_FLOOR = 1e-8
CHANNEL_FLOOR = 1e-5
"""LightX2V's converter clamps a weight row's amax here; kept so that its files round-trip bit for bit."""


def quantize_rows(x: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """q = round_half_even(x / s) with s = max(amax |row|, floor) / 127, so that |q| <= 127.

    x [..., K] float -> int8 [..., K], float32 scales [..., 1].
    """
    wide = x.to(torch.float32)
    scales = wide.abs().amax(dim=-1, keepdim=True).clamp_min(floor) / 127.0
    return (wide / scales).round_().to(torch.int8), scales


def dequantize_rows(values: Tensor, scales: Tensor) -> Tensor:
    """x = q * s in float32; `scales` broadcasts over the last axis."""
    return values.to(torch.float32) * scales
