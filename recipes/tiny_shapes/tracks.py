"""Naming the motion of a tracked blob from its centroid, size and orientation over time.

Thresholds are in pixels of a 128-pixel frame; callers scale their lengths to that first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.tiny_shapes.scene import TRAVELS

Array = NDArray[Any]

MOVE_MIN = 18.0  # a blob whose centroid covers less does not travel
DRIFT_MAX = 14.0  # most that a blob may drift while it rotates, grows or shrinks in place
SCALE_MIN = 1.35  # growth of the length scale that counts as growing
TURN_MIN = 30.0  # degrees
STILL, MIXED = "still", "mixed"

_COMPASS = {
    "right": 0, "down_right": 45, "down": 90, "down_left": 135,
    "left": 180, "up_left": 225, "up": 270, "up_right": 315,
}  # fmt: skip
assert set(_COMPASS) == set(TRAVELS)


@dataclass(frozen=True)
class Track:
    """Measures of a blob at T frames: center [T,2] px, scale [T] px, turn [T] degrees clockwise."""

    center: Array
    scale: Array
    turn: Array

    def ends(self, values: Array) -> Array:
        """Late minus early value, each the median of a tenth of the clip."""
        n = max(1, len(values) // 10)
        return np.asarray(np.median(values[-n:], axis=0) - np.median(values[:n], axis=0))

    @property
    def shift(self) -> Array:
        return self.ends(self.center)

    @property
    def growth(self) -> float:
        return float(np.exp(self.ends(np.log(np.maximum(self.scale, 1e-3)))))

    @property
    def rotation(self) -> float:
        return float(self.ends(self.turn))


def smooth(values: Array) -> Array:
    """Median of three neighbours in time (ends repeated), to drop single-frame outliers."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.asarray(np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0))


def _reversals(path: Array, least: float) -> int:
    """How often a 1-D path turns round by at least `least` (a zigzag count with hysteresis)."""
    turns, heading, extreme = 0, 0, path[0]
    low = high = path[0]
    for value in path[1:]:
        if heading == 0:
            low, high = min(low, value), max(high, value)
            if value - low >= least or high - value >= least:
                heading, extreme = (1 if value - low >= least else -1), value
        elif (value - extreme) * heading >= 0:
            extreme = value
        elif abs(value - extreme) >= least:
            turns, heading, extreme = turns + 1, -heading, value
    return turns


def name_motion(track: Track) -> str:
    """One of MOTIONS, or "still", "mixed" (several motions at once) or "rotate_left"."""
    center = smooth(track.center)
    spread = np.ptp(center, axis=0)
    reach = float(spread.max())
    growth, rotation = track.growth, track.rotation
    resized = max(growth, 1 / growth) >= SCALE_MIN
    turned = abs(rotation) >= TURN_MIN
    if reach >= MOVE_MIN:
        return MIXED if resized or turned else _name_path(center, spread, track.shift)
    if float(np.hypot(*track.shift)) > DRIFT_MAX or (resized and turned):
        return MIXED
    if resized:
        return "grow" if growth > 1 else "shrink"
    if turned:
        return "rotate" if rotation > 0 else "rotate_left"
    return STILL


def _name_path(center: Array, spread: Array, shift: Array) -> str:
    """Name a path that travels: a straight line in one of eight directions, or a bounce."""
    axis = int(spread.argmax())
    if _reversals(center[:, axis], 0.4 * float(spread[axis])) >= 1:
        if spread[1 - axis] > 0.4 * spread[axis]:
            return MIXED
        return "bounce_vertical" if axis == 1 else "bounce_horizontal"
    heading = np.degrees(np.arctan2(shift[1], shift[0]))
    away = {name: abs((heading - angle + 180) % 360 - 180) for name, angle in _COMPASS.items()}
    name = min(away, key=lambda n: away[n])
    # A straight path stays near the line between its ends.
    length = float(np.hypot(*shift))
    offset = center - center[0]
    bend = np.abs(offset[:, 0] * shift[1] - offset[:, 1] * shift[0]) / max(length, 1e-6)
    straight = length >= 0.75 * float(spread.max()) and float(bend.max()) <= max(6.0, 0.25 * length)
    return name if straight else MIXED
