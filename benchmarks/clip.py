"""A clip like the ones people make, for everything that encodes: the decoder of a model with random weights gives noise only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from recipes.tiny_shapes.render import render
from recipes.tiny_shapes.scene import Object, Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frames = NDArray[np.uint8]

SCENE = Scene((Object("star", "red", "rotate"), Object("circle", "blue", "right")))
OCTAVES = ((6, 0.10), (24, 0.07), (96, 0.05), (240, 0.04))
"""Cells across the picture and amplitude of each layer of the texture, from clouds to detail of three pixels."""
PAN = (0.75, 0.30)
"""Pixels per frame that the texture moves to the right and down: a camera that pans."""
MARGIN = 96
GRAIN = 1.0
"""Standard deviation of the grain in codes of 255, new in every frame."""


def moving_scene(frames: int, height: int, width: int, *, grain: float = GRAIN, seed: int = 7) -> Frames:
    """uint8 [frames, height, width, 3]: two moving shapes under a texture that pans by fractions of a pixel, with light grain.

    The same numbers everywhere up to rounding, and the same bytes on one machine.
    """
    generator = torch.Generator().manual_seed(seed)
    edge = max(height, width)
    shapes = render([SCENE], frames=frames, size=max(16, edge // 2), seed=seed)[0]
    texture = _texture(height + MARGIN, width + MARGIN, generator)
    video = np.empty((frames, height, width, 3), np.uint8)
    for index in range(frames):
        picture = F.interpolate(shapes[None, :, index], size=(edge, edge), mode="bilinear", align_corners=False)[0]
        top, left = (edge - height) // 2, (edge - width) // 2
        picture = (picture[:, top : top + height, left : left + width] + 1) / 2
        picture = picture * (1 + _shifted(texture, index * PAN[1], index * PAN[0], height, width))
        noise = torch.randn(height, width, generator=generator) * (grain / 255)
        video[index] = ((picture + noise) * 255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return video


def _texture(height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """[height, width] around 0: random grids enlarged and added, finer ones weaker."""
    total = torch.zeros(height, width)
    for cells, amplitude in OCTAVES:
        grid = torch.rand(1, 1, max(2, cells * height // width), cells, generator=generator) * 2 - 1
        total += amplitude * F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)[0, 0]
    return total


def _shifted(texture: torch.Tensor, down: float, across: float, height: int, width: int) -> torch.Tensor:
    """The part of `texture` that is seen after moving by fractions of a pixel (bilinear); movement wraps at the margin."""
    y, x = down % (MARGIN - 1), across % (MARGIN - 1)
    row, column, fy, fx = int(y), int(x), y - int(y), x - int(x)
    part = texture[row : row + height + 1, column : column + width + 1]
    rows = part[:-1] * (1 - fy) + part[1:] * fy
    return rows[:, :-1] * (1 - fx) + rows[:, 1:] * fx
