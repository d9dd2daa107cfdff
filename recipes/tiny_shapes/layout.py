"""Where everything is over a clip: sizes, start points and paths, sampled for a batch in numpy.

Units are pixels of a 128 x 128 canvas, x to the right and y down; the renderer scales them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.tiny_shapes.scene import COLORS, MOTIONS, SHAPES, Scene

Array = NDArray[Any]

CANVAS = 128.0
MARGIN = 3.0  # free border around every object, for the whole clip
GAP = 5.0  # free space between the lanes of two objects
FIT_MIN = 0.93  # lanes may shrink sizes and travels to this factor; tighter pairs are placed by search
TRIES = 192
CLEARLY = 8.0  # room that an upper and a lower lane must have more than lanes side by side

# Hues 0, 127, 231, 52, 284 and 182 degrees: at least 49 degrees apart.
PALETTE = np.array(
    [(225, 40, 40), (45, 180, 60), (40, 70, 235), (245, 215, 30), (170, 50, 215), (30, 215, 220)],
    dtype=np.float32,
)

# Corner distance over nominal radius, so that the four shapes look about equally large.
CORNER = np.array([1.0, 1.2, 1.3, 1.3])
# Upright extents over corner distance: left, right, up, down of the centre.
_C36, _S72, _C30, _C45 = np.cos(np.pi / 5), np.sin(2 * np.pi / 5), np.cos(np.pi / 6), np.cos(np.pi / 4)
EXTENT = np.array(
    [(1, 1, 1, 1), (_C45, _C45, _C45, _C45), (_C30, _C30, 1, 0.5), (_S72, _S72, 1, _C36)], dtype=np.float64
)

_DIRECTION = {
    "right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1),
    "up_right": (1, -1), "up_left": (-1, -1), "down_right": (1, 1), "down_left": (-1, 1),
    "bounce_vertical": (0, -1), "bounce_horizontal": (1, 0),
}  # fmt: skip
_DIRECTIONS = np.array([_DIRECTION.get(m, (0, 0)) for m in MOTIONS], dtype=np.float64)
_HOP, _PINGPONG = MOTIONS.index("bounce_vertical"), MOTIONS.index("bounce_horizontal")
_ROTATE, _GROW, _SHRINK = (MOTIONS.index(m) for m in ("rotate", "grow", "shrink"))


@dataclass(frozen=True)
class Layout:
    """Paths of a batch of B clips with T frames and up to two objects.

    active [B,2] bool; shape [B,2] int index into SHAPES; color [B,2,3] RGB in 0..255;
    center [B,2,T,2] (x, y) px; corner [B,2,T] centre-to-corner distance px;
    angle [B,2,T] radians, clockwise on screen, 0 = upright.
    """

    active: Array
    shape: Array
    color: Array
    center: Array
    corner: Array
    angle: Array


def _encode(scenes: list[Scene]) -> tuple[Array, Array]:
    """Scenes -> attribute indices [B,2,3] (shape, color, motion) and active [B,2]."""
    code = np.zeros((len(scenes), 2, 3), dtype=np.int64)
    active = np.zeros((len(scenes), 2), dtype=bool)
    for b, scene in enumerate(scenes):
        for k, o in enumerate(scene.objects):
            code[b, k] = SHAPES.index(o.shape), COLORS.index(o.color), MOTIONS.index(o.motion)
            active[b, k] = True
    return code, active


def _progress(motion: Array, t: Array, rng: np.random.Generator) -> Array:
    """Share of the travel covered at each time: [B,2] motions, t [T] in 0..1 -> [B,2,T] in 0..1.

    Travel: t. Hops: |sin(pi n t)|, n = 1.5..2.2. To and fro: a triangle wave with n periods and
    rounded turns, 1/2 - asin(0.95 cos(2 pi n t)) / (2 asin 0.95), n = 1.5..2.
    """
    u = rng.random(motion.shape)[..., None]
    hop = np.abs(np.sin(np.pi * (1.5 + 0.7 * u) * t))
    swing = 0.5 - np.arcsin(0.95 * np.cos(2 * np.pi * (1.5 + 0.5 * u) * t)) / (2 * np.arcsin(0.95))
    swing = (swing - swing[..., :1]).clip(0, 1)
    m = motion[..., None]
    return np.where(m == _HOP, hop, np.where(m == _PINGPONG, swing, t))


def _sizes(motion: Array, shape: Array, two: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Corner distance px at the first and last frame, each [B,2]. Growth is by a factor 1.8..2.4."""
    u, v = rng.random(motion.shape), rng.random(motion.shape)
    steady = np.where(two, 14 + 3 * u, 16 + 6 * u)
    large = np.where(two, 19 + 3 * u, 23 + 4 * u)
    small = large / (1.8 + 0.6 * v)
    first = np.where(motion == _GROW, small, np.where(motion == _SHRINK, large, steady))
    last = np.where(motion == _GROW, large, np.where(motion == _SHRINK, small, steady))
    return first * CORNER[shape], last * CORNER[shape]


def _travel(motion: Array, two: Array, rng: np.random.Generator) -> Array:
    """Distance px along each axis that the motion uses, [B,2]."""
    u = rng.random(motion.shape)
    diagonal = np.abs(_DIRECTIONS[motion]).sum(-1) == 2
    straight = np.where(two, 44 + 12 * u, 48 + 26 * u)
    slanted = np.where(two, 35 + 6 * u, 38 + 18 * u)
    bounce = 40 + 8 * u
    bounces = (motion == _HOP) | (motion == _PINGPONG)
    return np.where(bounces, bounce, np.where(diagonal, slanted, straight))


def _lanes(span: Array, two: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Split the canvas of two-object clips into two lanes across the roomier axis; the object named first is left or above.

    span [B,2,2] px that (object, axis) needs. Returns lane starts and ends [B,2,2] px, and the factor
    [B] (at most 1) by which sizes and travels must shrink to fit the lanes. A caption decides the order and nearly always
    the axis: a model of few steps starts from pure noise, and would have to settle in its first step which object goes where.
    """
    room = CANVAS - 2 * MARGIN
    need = span.sum(1)  # [B, axis]
    slack = room - GAP - need
    taller = slack[:, 1] - slack[:, 0]
    axis = ((taller > CLEARLY) | ((slack[:, 0] < 0) & (taller > 0))).astype(np.int64)
    rows = np.arange(len(span))
    fit = np.where(two, np.minimum(1.0, (room - GAP) / need[rows, axis]), 1.0)
    free = np.maximum(slack[rows, axis], 0) * (0.25 + 0.5 * rng.random(len(span)))
    border = MARGIN + span[rows, 0, axis] * fit + free
    low, high = np.full_like(span, MARGIN), np.full_like(span, CANVAS - MARGIN)
    high[rows, 0, axis] = np.where(two, border, high[rows, 0, axis])
    low[rows, 1, axis] = np.where(two, border + GAP, low[rows, 1, axis])
    return low, high, fit


def _search(box: tuple[Array, Array], walk: Array, radius: Array, rng: np.random.Generator) -> Array:
    """Start points of pairs that lanes would squeeze too much, mostly two diagonal walks: [n,2,2].

    box: extents before and after the centre [n,2,2]; walk [n,2,T,2] px; radius [n,2] px. Of some
    random starts inside the canvas that have the first object further left and up on average, the first whose bounding
    circles keep GAP apart at all times, else the one that keeps them furthest apart.
    """
    low = MARGIN + box[0] - walk.min(2)
    high = CANVAS - MARGIN - box[1] - walk.max(2)
    starts = low[:, None] + (high - low)[:, None] * rng.random((len(low), TRIES, 2, 2))
    apart = starts[:, :, 0, None] - starts[:, :, 1, None] + (walk[:, 0] - walk[:, 1])[:, None, ::4]
    clear = np.hypot(apart[..., 0], apart[..., 1]).min(-1) - radius.sum(1)[:, None]
    ordered = apart.mean(2).sum(-1) < 0
    return np.asarray(starts[np.arange(len(low)), np.where(ordered, np.minimum(clear, GAP), -CANVAS).argmax(1)])


def sample_layout(scenes: list[Scene], frames: int, rng: np.random.Generator) -> Layout:
    """Random sizes and paths for `scenes`; every object stays inside the canvas and its lane."""
    code, active = _encode(scenes)
    shape, color, motion = code[..., 0], code[..., 1], code[..., 2]
    two = active[:, 1:]
    first, last = _sizes(motion, shape, two, rng)
    largest = np.maximum(first, last)
    direction = _DIRECTIONS[motion]
    flip = np.where((motion == _PINGPONG) & (rng.random(motion.shape) < 0.5), -1.0, 1.0)
    direction = direction * flip[..., None]
    travel = _travel(motion, two, rng)
    # A turning shape sweeps its whole circle.
    extent = np.where((motion == _ROTATE)[..., None], 1.0, EXTENT[shape]) * largest[..., None]  # [B,2,4]
    before, after = extent[..., 0::2], extent[..., 1::2]  # [B,2,axis]
    path = direction * travel[..., None]
    # One object alone may use the whole canvas and no more.
    room = CANVAS - 2 * MARGIN
    path = np.sign(path) * np.minimum(np.abs(path), room - before - after)
    low, high, fit = _lanes(before + after + np.abs(path), two[:, 0], rng)
    scale = fit[:, None, None]
    before, after, path = before * scale, after * scale, path * scale
    free = np.maximum(high - low - before - after - np.abs(path), 0.0)
    start = low + before + np.maximum(-path, 0.0) + free * rng.random(free.shape)

    t = np.linspace(0.0, 1.0, frames)
    walk = path[:, :, None] * _progress(motion, t, rng)[..., None]
    tight = two[:, 0] & (fit < FIT_MIN)
    if tight.any():
        walk[tight] /= scale[tight][..., None]
        scale = np.where(tight[:, None, None], 1.0, scale)
        box = (extent[tight][..., 0::2], extent[tight][..., 1::2])
        start[tight] = _search(box, walk[tight], largest[tight], rng)
    center = start[:, :, None] + walk
    corner = (first[..., None] + (last - first)[..., None] * t) * scale
    turn = np.where(motion == _ROTATE, np.deg2rad(75 + 65 * rng.random(motion.shape)), 0.0)
    shade = 1 + 0.06 * (rng.random((*motion.shape, 1)) - 0.5)
    return Layout(
        active=active,
        shape=shape,
        color=(PALETTE[color] * shade).clip(0, 255).astype(np.float32),
        center=center.astype(np.float32),
        corner=corner.astype(np.float32),
        angle=(turn[..., None] * t).astype(np.float32),
    )
