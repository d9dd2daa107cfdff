"""Still, low-saturation backgrounds, drawn for a whole batch at once."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("gradient", "clouds", "stripes", "dots", "checker", "grain")


def backdrops(count: int, size: int, rng: np.random.Generator, device: torch.device | str) -> Tensor:
    """Random backgrounds, [count, 3, size, size] in 0..1, the same numbers on every device.

    gray = level + contrast * pattern with pattern in -1..1, then a tint of at most 8 levels a channel,
    which keeps the chroma (largest minus smallest channel) below 20 of 255.
    """

    def draw(low: float, high: float) -> Tensor:
        """One uniform number a clip, [count,1,1]."""
        values = rng.uniform(low, high, (count, 1, 1)).astype(np.float32)
        return torch.from_numpy(values).to(device)

    kind = torch.from_numpy(rng.integers(0, len(KINDS), (count, 1, 1))).to(device)
    coarse = _noise(count, 5, size, rng, device)
    fine = _noise(count, 24, size, rng, device)
    axis = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
    x, y = axis[None, None, :], axis[None, :, None]
    theta, period, phase = draw(0, 2 * math.pi), draw(0.14, 0.26), draw(0, 1)
    along = x * torch.cos(theta) + y * torch.sin(theta)
    wave_x, wave_y = (torch.sin(2 * math.pi * (a / period + phase)) for a in (x, y))

    patterns = (
        1.6 * (along - 0.5 * (torch.cos(theta) + torch.sin(theta))),
        1.1 * coarse,
        (2.0 * torch.sin(2 * math.pi * (along / period + phase))).clamp(-1, 1),
        # A grid of round spots: the product of two raised waves is round near its tops.
        ((0.5 + 0.5 * wave_x) * (0.5 + 0.5 * wave_y) * 6 - 3).clamp(-1, 1),
        (4.0 * wave_x * wave_y).clamp(-1, 1),
        0.6 * fine + 0.4 * coarse,
    )
    pattern = torch.zeros(count, size, size, device=device)
    for index, candidate in enumerate(patterns):
        pattern = torch.where(kind == index, candidate, pattern)
    gray = draw(0.35, 0.78) + draw(0.04, 0.09) * pattern.clamp(-1.5, 1.5)
    tint = torch.from_numpy(rng.uniform(-0.03, 0.03, (count, 3, 1, 1)).astype(np.float32)).to(device)
    return (gray[:, None] + tint).clamp(0, 1)


def _noise(count: int, cells: int, size: int, rng: np.random.Generator, device: torch.device | str) -> Tensor:
    """Smooth noise, [count, size, size], mostly in -1..1: a random grid of `cells` enlarged."""
    grid = torch.from_numpy(rng.uniform(-1, 1, (count, 1, cells, cells)).astype(np.float32)).to(device)
    return F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False)[:, 0]
