"""A judge for generated clips: sees which objects are there, then compares them with a scene.

The first step (`detect`) never looks at the scene, so it cannot be led by the caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.tiny_shapes.scene import SHAPES, Object, Scene
from recipes.tiny_shapes.tracks import Track, name_motion, smooth
from recipes.tiny_shapes.vision import CORNERS, LABELS, OTHER, Blob, find_blob, label_frame, shape_distances

Array = NDArray[Any]

LEAST_PIXELS = 45.0  # smallest blob, in pixels of a 128-pixel frame
GLIMPSE = 0.2  # share of frames from which a blob counts as present
STEADY = 0.85  # share of frames in which an asked-for object must be seen
SHAPE_AGREE = 0.6  # share of frames that must vote for the shape
SHAPE_REACH = 0.07  # outline distance beyond which a blob is no known shape
SECOND_SHARE = 0.25  # a further blob of the same colour this large, against the first, is an object
CLEAR_SHARE = 0.4  # corners weaker than this, against the clip's clear frames, tell no orientation
UNCLEAR = "unclear"


@dataclass(frozen=True)
class Detection:
    """One object seen in a clip.

    `color` may be "other"; `shape` "unclear"; `motion` "unclear", "still", "mixed" or "rotate_left".
    seen: share of frames; votes: share of those that vote for `shape`; shift: (x, y) px of a 128-pixel
    frame, end minus start; growth: last over first length; rotation: degrees clockwise;
    twin: share of frames with another object of the same colour.
    """

    color: str
    shape: str
    motion: str
    seen: float
    votes: float
    shift: tuple[float, float]
    growth: float
    rotation: float
    twin: float


@dataclass(frozen=True)
class ObjectVerdict:
    """How one asked-for object came out; `found` is None when nothing stands for it."""

    expected: Object
    found: Detection | None
    color_ok: bool
    shape_ok: bool
    motion_ok: bool

    @property
    def right(self) -> bool:
        return self.color_ok and self.shape_ok and self.motion_ok


@dataclass(frozen=True)
class Verdict:
    """All objects' verdicts and the detections that nobody asked for."""

    objects: tuple[ObjectVerdict, ...]
    extra: tuple[Detection, ...]

    @property
    def fully_right(self) -> bool:
        """Everything asked for is there and right, and no other saturated object is."""
        twins = any(o.found is not None and o.found.twin >= GLIMPSE for o in self.objects)
        return not self.extra and not twins and all(o.right for o in self.objects)


def detect(frames: Array) -> tuple[Detection, ...]:
    """Objects in uint8 RGB frames [T,H,W,3], the most often seen first."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"expected uint8 frames [T,H,W,3], got {frames.dtype} {frames.shape}")
    unit = frames.shape[1] / 128.0
    blobs: list[list[Blob | None]] = [[] for _ in LABELS]
    for frame in frames:
        chroma, label = label_frame(np.ascontiguousarray(frame))
        counts = np.bincount(label.ravel(), minlength=256)
        for index in range(len(LABELS)):
            least = LEAST_PIXELS * unit**2
            enough = counts[index] >= least
            blobs[index].append(find_blob(chroma, label, index, least) if enough else None)
    found = (_describe(name, row, unit) for name, row in zip(LABELS, blobs, strict=True))
    return tuple(sorted((d for d in found if d is not None), key=lambda d: -d.seen))


def _describe(color: str, blobs: list[Blob | None], unit: float) -> Detection | None:
    """Sum up the blobs of one colour over the frames; None when too few frames have one."""
    times = np.array([t for t, b in enumerate(blobs) if b is not None])
    kept = [b for b in blobs if b is not None]
    seen = len(kept) / len(blobs)
    if seen < GLIMPSE:
        return None
    away = np.stack([shape_distances(b.outline) for b in kept])
    best = int(np.median(away, axis=0).argmin())
    votes = float(((away.argmin(1) == best) & (away[:, best] <= SHAPE_REACH)).mean())
    shape = SHAPES[best] if votes >= SHAPE_AGREE and color != OTHER else UNCLEAR

    every = np.arange(len(blobs))

    def fill(values: list[float]) -> Array:
        """One value a frame: frames without a blob are interpolated."""
        return np.asarray(np.interp(every, times, values))

    center = np.stack([fill([b.x for b in kept]), fill([b.y for b in kept])], 1) / unit
    scale = smooth(fill([b.area**0.5 for b in kept])) / unit
    track = Track(center, scale, smooth(_turn(kept, times, len(blobs), CORNERS[SHAPES[best]])))
    twin = float(np.mean([b.second >= max(LEAST_PIXELS * unit**2, SECOND_SHARE * b.pixels) for b in kept]))
    return Detection(
        color=color,
        shape=shape,
        motion=name_motion(track) if seen >= STEADY else UNCLEAR,
        seen=seen,
        votes=votes,
        shift=(float(track.shift[0]), float(track.shift[1])),
        growth=track.growth,
        rotation=track.rotation,
        twin=twin,
    )


def _turn(blobs: list[Blob], times: Array, frames: int, n: int) -> Array:
    """Orientation at each frame, degrees clockwise, from harmonic n of the outline (0 for n = 0).

    That harmonic's phase turns n times as fast as the shape, so a symmetric shape needs no care.
    Frames in which the corners are washed out have a weak harmonic with a random phase: they are
    left out and interpolated.
    """
    if n == 0:
        return np.zeros(frames)
    wave = np.array([b.outline[n] for b in blobs])
    clear = np.abs(wave) >= CLEAR_SHARE * np.percentile(np.abs(wave), 75)
    phase = np.unwrap(-np.angle(wave[clear]))
    return np.asarray(np.interp(np.arange(frames), times[clear], np.degrees(phase) / n))


def _compare(expected: Object, found: Detection | None) -> ObjectVerdict:
    if found is None:
        return ObjectVerdict(expected, None, False, False, False)
    return ObjectVerdict(
        expected,
        found,
        color_ok=found.color == expected.color and found.seen >= STEADY,
        shape_ok=found.shape == expected.shape,
        motion_ok=found.motion == expected.motion,
    )


def compare(detections: tuple[Detection, ...], scene: Scene) -> Verdict:
    """Match detections to the objects of `scene` so that most attributes agree, colours first."""
    wanted = scene.objects
    slots: tuple[Detection | None, ...] = (*detections, *([None] * len(wanted)))

    def agreement(order: tuple[Detection | None, ...]) -> tuple[int, int]:
        rows = [_compare(o, d) for o, d in zip(wanted, order, strict=True)]
        return sum(r.color_ok for r in rows), sum(r.shape_ok + r.motion_ok for r in rows)

    best = max(permutations(slots, len(wanted)), key=agreement)
    used = {id(d) for d in best if d is not None}
    return Verdict(
        objects=tuple(_compare(o, d) for o, d in zip(wanted, best, strict=True)),
        extra=tuple(d for d in detections if id(d) not in used),
    )


def judge(frames: Array, scene: Scene) -> Verdict:
    """Verdict on uint8 RGB frames [T,H,W,3] that should show `scene`."""
    return compare(detect(frames), scene)
