"""How much goes on in a video while it is made: two numbers of the clean latents that a step predicts.

With x0 [B, C, T, h, w] and its variance v over everything but the batch,

    gradient = (mean of (x0[.., w+1] - x0[.., w])^2 + mean of (x0[.., h+1] - x0[.., h])^2) / v
    motion   = mean of (x0[:, :, t+1] - x0[:, :, t])^2 / v

both dimensionless: differences between neighbours, relative to how much the latents vary at all. White noise has gradient 4 and
motion 2; a still, flat picture 0 and 0. They take one pass over a tensor that is a few thousandths of what a step moves.
"""

from __future__ import annotations

import torch
from torch import Tensor


def measure(clean: Tensor) -> Tensor:
    """`SIGNALS` of clean latents [B, C, T, h, w] as a float32 tensor [B, 2] on their device; a clip of one frame has motion 0."""
    x = clean.float()
    variance = x.flatten(1).var(dim=1, correction=0).clamp_min(1e-12)
    across = _steps(x, -1) + _steps(x, -2)
    return torch.stack([across / variance, _steps(x, 2) / variance], dim=1)


def difference(clean: Tensor, other: Tensor) -> Tensor:
    """Relative squared difference of two predictions of the clean latents [B, C, T, h, w], as a float32 tensor [B]."""
    x, y = clean.float(), other.float()
    return (x - y).flatten(1).square().mean(dim=1) / x.flatten(1).var(dim=1, correction=0).clamp_min(1e-12)


def _steps(x: Tensor, axis: int) -> Tensor:
    """Mean squared difference of neighbours along one axis, per sample [B]."""
    if x.shape[axis] < 2:
        return x.new_zeros(len(x))
    return x.diff(dim=axis).square().flatten(1).mean(dim=1)
