"""Temporal consistency of one video, from dense optical flow (OpenCV's DIS): warp error and flicker index.

Kroeger et al., Fast Optical Flow using Dense Inverse Search (2016); the warp error is that of Lai et al., Learning Blind
Video Temporal Consistency (2018), with occluded pixels left out by the forward-backward test of Sundaram et al. (2010).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from turbort.errors import UnavailableError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

TILE = 16
"""Edge in pixels of the regions whose brightness is followed."""
RELATIVE, ABSOLUTE = 0.01, 0.5
"""A pixel is occluded where |f + b|^2 > RELATIVE (|f|^2 + |b|^2) + ABSOLUTE, in pixels."""
LEAST_SEEN = 0.05
"""Share of pixels that must be visible in both frames for a pair to count."""


@dataclass(frozen=True)
class Temporal:
    """How steady a video is.

    Attributes:
        warp: mean over pairs of neighbouring frames of |I_t - warp(I_{t+1})| over visible pixels, in 8-bit levels.
        flicker: root mean square over pairs and tiles of the tile's mean signed brightness change along the motion, in
            8-bit levels. Noise cancels inside a tile; a frame that is brighter or darker than its neighbours does not.
        warp_per_pair, flicker_per_pair: the same for each pair.
    """

    warp: float
    flicker: float
    warp_per_pair: tuple[float, ...]
    flicker_per_pair: tuple[float, ...]


def temporal(frames: Array) -> Temporal:
    """Measures of uint8 frames [T, H, W, 3]; zeros for a single frame. UnavailableError without OpenCV."""
    grey = [_grey(frame) for frame in frames]
    rows = [_pair(a, b) for a, b in pairwise(grey)]
    if not rows:
        return Temporal(0.0, 0.0, (), ())
    warp, flicker = (tuple(float(row[i]) for row in rows) for i in (0, 1))
    return Temporal(float(np.mean(warp)), float(np.sqrt(np.mean(np.square(flicker)))), warp, flicker)


def _cv2() -> Any:
    try:
        import cv2
    except ImportError:
        raise UnavailableError("the temporal metrics need OpenCV", fix="pip install 'turbort[quality]'") from None
    return cv2


def _grey(frame: Array) -> Array:
    cv2 = _cv2()
    grey: Array = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    return grey


def _pair(first: Array, second: Array) -> tuple[float, float]:
    cv2 = _cv2()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    # Brightness is what is measured, so the flow must not be led by it.
    forward, backward = dis.calc(_level(first), _level(second), None), dis.calc(_level(second), _level(first), None)
    warped = _warp(second.astype(np.float32), forward)
    back = _warp(backward, forward)
    apart = np.square(forward + back).sum(-1)
    size = np.square(forward).sum(-1) + np.square(back).sum(-1)
    seen = apart <= RELATIVE * size + ABSOLUTE
    if seen.mean() < LEAST_SEEN:
        seen = np.ones_like(seen)
    change = np.where(seen, warped - first.astype(np.float32), 0.0)
    height, width = (n // TILE * TILE or n for n in change.shape)
    tiles = _tiles(change[:height, :width]).sum((1, 3)) / np.maximum(_tiles(seen[:height, :width]).sum((1, 3)), 1)
    return float(np.abs(change).sum() / seen.sum()), float(np.sqrt(np.mean(np.square(tiles))))


def _level(grey: Array) -> Array:
    """The frame with the mean and spread of every other frame (128 and 40)."""
    wide = grey.astype(np.float32)
    levelled = (wide - wide.mean()) * (40.0 / max(float(wide.std()), 1.0)) + 128.0
    return np.asarray(np.clip(np.rint(levelled), 0, 255).astype(np.uint8))


def _warp(image: Array, flow: Array) -> Array:
    cv2 = _cv2()
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    warped: Array = cv2.remap(image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return warped


def _tiles(image: Array) -> Array:
    height, width = image.shape
    edge_y, edge_x = min(TILE, height), min(TILE, width)
    return image.reshape(height // edge_y, edge_y, width // edge_x, edge_x)
