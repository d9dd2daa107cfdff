"""e4m3 with one scale per row: `fp8-token` for activations, `fp8-channel` for weights."""

from __future__ import annotations

import torch
from torch import Tensor

E4M3_MAX = 448.0
FLOOR = 1e-8


def to_e4m3(x: Tensor) -> Tensor:
    """Round to the nearest e4m3 value, saturating at +-448 (a plain cast would make NaN beyond it)."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """q = e4m3(x / s) with s = max(amax |row|, 1e-8) / 448; x [..., K] -> e4m3 [..., K], float32 [..., 1]."""
    wide = x.to(torch.float32)
    scales = wide.abs().amax(dim=-1, keepdim=True).clamp_min(FLOOR) / E4M3_MAX
    return to_e4m3(wide / scales), scales
