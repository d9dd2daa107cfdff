"""Rotary position tables over (T, H, W), made on the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Rotated pairs per axis: a third of the head each, the remainder to time (22, 21, 21 of 64 for head_dim 128)."""
    space = head_dim // 6
    return head_dim // 2 - 2 * space, space, space


def rope_tables(
    grid: tuple[int, int, int], head_dim: int, device: torch.device | str = "cpu", theta: float = 10000.0
) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i / d_axis), float32 [T * H * W, head_dim / 2].

    The angles reach 1000 radians, where float32 resolves no better than 6e-5; so they are computed on the host in
    numpy's default precision and only the results are rounded.
    """
    angles = []
    for axis, (length, pairs) in enumerate(zip(grid, axis_widths(head_dim), strict=True)):
        frequency = theta ** (-np.arange(pairs) / pairs)
        table = np.outer(np.arange(length), frequency)
        shape = [1, 1, 1, pairs]
        shape[axis] = length
        angles.append(np.broadcast_to(table.reshape(shape), (*grid, pairs)))
    angle = np.concatenate(angles, axis=-1).reshape(-1, head_dim // 2)
    return _float32(np.cos(angle), device), _float32(np.sin(angle), device)


def _float32(table: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(table.astype(np.float32)).to(device)
