"""Temporal consistency of one video, from dense optical flow (OpenCV's DIS): warp error, flicker and latent flicker.

Kroeger et al., Fast Optical Flow using Dense Inverse Search (2016); the warp error is that of Lai et al., Learning Blind
Video Temporal Consistency (2018), with occluded pixels left out by the forward-backward test of Sundaram et al. (2010);
so are those that leave the picture.
The two statistics of brightness on top of the flow are this module's own; their definitions are at `Temporal`.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        latent: root mean square over frames t and tiles of the mean over visible pixels of (I_{t-s} + I_{t+s}) / 2 - I_t along
            the motion, s the frames of one latent frame, in 8-bit levels. Brightness that is steady or changes evenly counts
            nothing, one that goes up and down by b from latent frame to latent frame counts 2 b. Between neighbouring frames
            the same flicker is spread over s small steps by the decoder, and hides in what motion leaves.
        warp_per_pair, flicker_per_pair: the same for each pair.
    """

    warp: float
    flicker: float
    latent: float
    warp_per_pair: tuple[float, ...]
    flicker_per_pair: tuple[float, ...]


def temporal(frames: Array, stride: int = 4) -> Temporal:
    """Measures of uint8 frames [T, H, W, 3]; zeros where a video is too short. UnavailableError without OpenCV.

    `stride` is the number of frames that one latent frame stands for (the first stands for one).
    """
    grey = [_grey(frame) for frame in frames]
    rows = [_pair(a, b) for a, b in pairwise(grey)]
    if not rows:
        return Temporal(0.0, 0.0, 0.0, (), ())
    warp, flicker = (tuple(float(row[i]) for row in rows) for i in (0, 1))
    return Temporal(float(np.mean(warp)), _rms(flicker), _rms(_bends(grey, stride)), warp, flicker)


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
    forward, backward = _flows(first, second)
    change, seen = _change(first, second, forward, backward)
    return float(np.abs(change).sum() / seen.sum()), _rms(_tile_means(change, seen))


def _bends(grey: Sequence[Array], stride: int) -> list[float]:
    """For each frame with neighbours at both sides, the root mean square of half its tiles' second difference in time."""
    flows = [_flows(first, second) for first, second in zip(grey, grey[stride:], strict=False)]
    found = []
    for t in range(stride, len(grey) - stride):
        later, seen_later = _change(grey[t], grey[t + stride], *flows[t])
        earlier, seen_earlier = _change(grey[t], grey[t - stride], *flows[t - stride][::-1])
        seen = seen_later & seen_earlier
        found.append(_rms(_tile_means(np.where(seen, (later + earlier) / 2, 0.0), seen)))
    return found


def _flows(first: Array, second: Array) -> tuple[Array, Array]:
    """Motion from the first frame to the second, and back."""
    dis = _cv2().DISOpticalFlow_create(_cv2().DISOPTICAL_FLOW_PRESET_MEDIUM)
    # Brightness is what is measured, so the flow must not be led by it.
    return dis.calc(_level(first), _level(second), None), dis.calc(_level(second), _level(first), None)


def _change(first: Array, second: Array, there: Array, back: Array) -> tuple[Array, Array]:
    """Brightness of the second frame, brought along the motion, less that of the first (0 where occluded); visible pixels."""
    returned = _warp(back, there)
    apart = np.square(there + returned).sum(-1)
    size = np.square(there).sum(-1) + np.square(returned).sum(-1)
    seen = (apart <= RELATIVE * size + ABSOLUTE) & _inside(there)
    if seen.mean() < LEAST_SEEN:
        seen = np.ones_like(seen)
    return np.where(seen, _warp(second.astype(np.float32), there) - first.astype(np.float32), 0.0), seen


def _inside(flow: Array) -> Array:
    """Pixels that the motion does not take out of the picture: nothing can be compared with what is beyond its edge."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width]
    x, y = x + flow[..., 0], y + flow[..., 1]
    inside: Array = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside


def _tile_means(change: Array, seen: Array) -> Array:
    """Mean over the visible pixels of each tile."""
    height, width = (n // TILE * TILE or n for n in change.shape)
    means: Array = _tiles(change[:height, :width]).sum((1, 3)) / np.maximum(_tiles(seen[:height, :width]).sum((1, 3)), 1)
    return means


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0


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
