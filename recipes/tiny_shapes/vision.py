"""Finding saturated blobs in frames and measuring their place, size and outline.

Angles grow clockwise on screen because y points down. Lengths are pixels of the given frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.tiny_shapes.scene import SHAPES

Array = NDArray[Any]

# Hue centres in degrees; every other hue further than HUE_REACH from all of them is "other".
HUES = {"red": 0.0, "green": 127.0, "blue": 231.0, "yellow": 52.0, "purple": 284.0, "cyan": 182.0}
HUE_REACH = 30.0
OTHER = "other"
LABELS = (*HUES, OTHER)
CHROMA_MIN = 64.0  # largest minus smallest channel; the gray backgrounds stay near 20
CORNERS = {"circle": 0, "square": 4, "triangle": 3, "star": 5}
RAYS = 120  # directions of the outline signature
HARMONICS = slice(2, 13)


@dataclass(frozen=True)
class Blob:
    """The largest blob of one colour in one frame.

    x, y: centroid px; area: soft area px^2; outline: harmonics 0..12 of the outline relative to its
    mean radius, complex; second: pixel area of the next largest blob of that colour; pixels: own.
    """

    x: float
    y: float
    area: float
    outline: Array
    pixels: int
    second: int


@lru_cache(maxsize=1)
def _hue_table() -> Array:
    """OpenCV hue (0..179, two degrees a step) -> index into LABELS, uint8 [256]."""
    hue = np.arange(256, dtype=np.float64)[:, None] * 2
    away = np.abs((hue - np.array(list(HUES.values())) + 180) % 360 - 180)
    return np.where(away.min(1) <= HUE_REACH, away.argmin(1), len(HUES)).astype(np.uint8)


def label_frame(frame: Array) -> tuple[Array, Array]:
    """RGB uint8 [H,W,3] -> (chroma float32 [H,W], label uint8 [H,W]; 255 where not saturated)."""
    soft = cv2.GaussianBlur(frame, (0, 0), 0.7)  # takes the edge off block and pixel noise
    r, g, b = cv2.split(soft)
    chroma = cv2.subtract(cv2.max(cv2.max(r, g), b), cv2.min(cv2.min(r, g), b)).astype(np.float32)
    label = _hue_table()[cv2.cvtColor(soft, cv2.COLOR_RGB2HSV)[..., 0]]
    label[chroma < CHROMA_MIN] = 255
    return chroma, label


def signature(cover: Array, x: float, y: float) -> Array:
    """Harmonics 0..12 of the outline of a soft mask [H,W] in 0..1 about (x, y), over its mean.

    Along a ray, rho = sqrt(2 sum(cover r dr)): the border's distance for a crisp mask, and hardly
    changed by blur. Harmonic k is large for a shape of k-fold symmetry, and its phase turns with it.
    """
    reach = float(np.sqrt((cover > 0).sum()) * 1.6 + 3)
    bins = int(np.ceil(reach * 2))
    # Without the fill flag, samples outside the frame would keep whatever the memory held.
    flags = cv2.INTER_LINEAR | cv2.WARP_POLAR_LINEAR | cv2.WARP_FILL_OUTLIERS
    polar = cv2.warpPolar(cover, (bins, RAYS), (x, y), reach, flags=flags)
    r = (np.arange(bins) + 0.5) * (reach / bins)
    rho = np.sqrt(2 * (polar * r).sum(1) * (reach / bins))
    spectrum = np.fft.rfft(rho)[:13]
    return spectrum / max(float(np.abs(spectrum[0])), 1e-6)


def find_blob(chroma: Array, label: Array, index: int, least: float) -> Blob | None:
    """Measure the largest blob of colour `index`, or None when none has `least` pixels."""
    mask = (label == index).astype(np.uint8)
    if int(mask.sum()) < least:
        return None
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    sizes = stats[1:count, cv2.CC_STAT_AREA]
    order = np.argsort(sizes)[::-1]
    pixels = int(sizes[order[0]])
    if pixels < least:
        return None
    second = int(sizes[order[1]]) if len(order) > 1 else 0
    own = (parts == 1 + order[0]).astype(np.uint8)
    full = float(np.percentile(chroma[own > 0], 75))
    near = cv2.dilate(own, np.ones((7, 7), np.uint8)) > 0
    foreign = (label != index) & (label != 255)
    # Half coverage has half the chroma: a soft mask keeps the outline exact to a fraction of a pixel.
    low, high = 0.25 * full, 0.8 * full
    cover = np.clip((chroma - low) / (high - low), 0, 1) * (near & ~foreign)
    cover = cover.astype(np.float32)
    moments = cv2.moments(cover)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    return Blob(x, y, float(moments["m00"]), signature(cover, x, y), pixels, second)


def _corners(shape: str, radius: float) -> Array:
    """Border points of an ideal shape about the origin, [N,2]."""
    if shape == "circle":
        angle, reach = np.arange(90) * (2 * np.pi / 90), np.ones(90)
    elif shape == "star":
        angle, reach = np.arange(10) * (np.pi / 5), np.tile([1.0, 0.46], 5)
    else:
        angle = np.arange(CORNERS[shape]) * (2 * np.pi / CORNERS[shape])
        reach = np.ones(CORNERS[shape])
    return np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None] * radius


@lru_cache(maxsize=1)
def _templates() -> tuple[Array, Array]:
    """Outline harmonics of ideal shapes at several sizes and blurs: ([N, K], shape index [N])."""
    rows, owners = [], []
    for index, shape in enumerate(SHAPES):
        for radius in (10.0, 14.0, 20.0, 28.0):
            big = np.zeros((72 * 8, 72 * 8), np.uint8)
            cv2.fillPoly(big, [np.round(_corners(shape, radius * 8) + 36 * 8).astype(np.int32)], 255)
            cover = cv2.resize(big, (72, 72), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
            for blur in (0.5, 1.2, 2.0, 3.0):
                if blur > radius * (0.17 if shape in ("star", "triangle") else 0.12):  # a disc to anyone
                    continue
                soft = cv2.GaussianBlur(cover, (0, 0), blur)
                soft = np.clip((soft - 0.25) / 0.55, 0, 1)
                rows.append(np.abs(signature(soft, 35.5, 35.5))[HARMONICS])
                owners.append(index)
    return np.array(rows), np.array(owners)


def shape_distances(outline: Array) -> Array:
    """Distance of an outline to the nearest template of each shape in SHAPES, [4]."""
    rows, owners = _templates()
    away = np.linalg.norm(rows - np.abs(outline)[HARMONICS], axis=1)
    return np.array([away[owners == i].min() for i in range(len(SHAPES))])
