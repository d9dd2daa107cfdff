"""Scenes to clips: distance fields evaluated for a whole batch of clips at once, on any device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recipes.tiny_shapes.backdrop import backdrops
from recipes.tiny_shapes.layout import CANVAS, Layout, sample_layout
from recipes.tiny_shapes.scene import SHAPES, Scene

STAR_NOTCH = 0.46  # notch distance over corner distance
CHUNK = 64  # clips drawn at once: bounds the memory of temporaries to about 140 MB each at 33 x 128 x 128


def _folds() -> np.ndarray:
    """Per shape (sector half-angle s, edge normal angle a, first corner angle), [4,3] radians.

    All four shapes are stars with n corners: fold the plane into one sector of 2 pi / n around a
    corner, and the border is a single line between the corner (1, 0) and the notch q (cos s, sin s),
    s = pi / n. Its normal points to a = atan2(1 - q cos s, q sin s). A regular polygon has q = cos s.
    A circle is the limit with no sector at all.
    """
    rows = []
    for name in SHAPES:
        n = {"circle": 0, "square": 4, "triangle": 3, "star": 5}[name]
        if n == 0:
            rows.append((1.0, 0.0, 0.0))
            continue
        s = math.pi / n
        q = STAR_NOTCH if name == "star" else math.cos(s)
        # Upright: a corner at the top (-pi/2 on screen), except that a square stands on an edge.
        corner = -math.pi / 4 if name == "square" else -math.pi / 2
        rows.append((s, math.atan2(1 - q * math.cos(s), q * math.sin(s)), corner))
    return np.array(rows, dtype=np.float32)


def _paint(video: Tensor, layout: Layout, slot: int) -> None:
    """Draw object `slot` of each clip that has one over `video` [B,3,T,H,W] (0..1), in place.

    Signed distance d = rho cos(phi - a) - R cos a, with phi the folded angle; coverage is
    clamp(1/2 - d, 0, 1), d in output pixels.
    """
    rows = np.flatnonzero(layout.active[:, slot])
    if len(rows) == 0:
        return
    device, size = video.device, video.shape[-1]
    unit = size / CANVAS

    def put(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    def spread(values: np.ndarray) -> Tensor:
        """[n] or [n,T] -> [n,T or 1,1,1]... broadcast against [n,T,H,W]."""
        return put(values.reshape(len(rows), -1, 1, 1))

    center = layout.center[rows, slot] * np.float32(unit)
    corner = spread(layout.corner[rows, slot] * np.float32(unit))
    sector, normal, first = (spread(c) for c in _folds()[layout.shape[rows, slot]].T)
    round_ = spread((layout.shape[rows, slot] != SHAPES.index("circle")).astype(np.float32))
    axis = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    dx = axis.view(1, 1, 1, -1) - spread(center[..., 0])  # [n,T,1,W]
    dy = axis.view(1, 1, -1, 1) - spread(center[..., 1])  # [n,T,H,1]
    rho = torch.hypot(dx, dy)
    phi = torch.atan2(dy, dx).sub_(spread(layout.angle[rows, slot]) + first)
    phi.sub_(torch.round(phi / (2 * sector)).mul_(2 * sector)).abs_()
    # For a circle the angle must not matter: a = 0 and the factor 0 leave d = rho - R.
    distance = phi.sub_(normal).mul_(round_).cos_().mul_(rho).sub_(corner * torch.cos(normal))
    del rho
    coverage = (0.5 - distance).clamp_(0, 1)
    # A rim about two pixels wide, 15 % darker, and a light falling off by 10 % towards the bottom.
    light = (distance / (2 * unit)).add_(1.25).clamp_(0, 1).mul_(-0.15).add_(1.03)
    light.sub_(0.05 * dy / corner)
    pick = put(rows)
    color = put(layout.color[rows, slot] / np.float32(255))
    for channel in range(3):
        over = (light * color[:, channel].view(-1, 1, 1, 1)).clamp_(0, 1)
        video[pick, channel] = video[pick, channel].lerp_(over, coverage)


@torch.no_grad()
def render(
    scenes: list[Scene],
    frames: int = 33,
    size: int = 128,
    seed: int | np.random.Generator = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Clips of `scenes`: float32 [B, 3, frames, size, size] in -1..1, RGB.

    All random numbers come from `seed` on the CPU, so a seed gives the same clips on every device.
    """
    rng = np.random.default_rng(seed)
    out = torch.empty(len(scenes), 3, frames, size, size, device=device)
    for begin in range(0, len(scenes), CHUNK):
        part = out[begin : begin + CHUNK]
        layout = sample_layout(scenes[begin : begin + CHUNK], frames, rng)
        part.copy_(backdrops(len(part), size, rng, device)[:, :, None].expand_as(part))
        for slot in (1, 0):
            _paint(part, layout, slot)
        part.mul_(2).sub_(1)
    return out


def to_uint8(video: Tensor) -> Tensor:
    """[B,3,T,H,W] in -1..1 -> uint8 frames [B,T,H,W,3], as players and the judge take them."""
    levels = video.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).contiguous()
