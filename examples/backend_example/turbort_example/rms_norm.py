"""The kernel. Imported when a plan that chose it is bound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 64


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, emit: str | None = None) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight, a block of rows at a time, with the mean in fp32."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    gain = weight.float()
    for start in range(0, rows.shape[0], ROWS):
        block = rows[start : start + ROWS].float()
        scale = torch.rsqrt(block.square().mean(-1, keepdim=True) + eps)
        out[start : start + ROWS] = block * scale * gain
    return out.view(x.shape)
