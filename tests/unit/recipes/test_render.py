"""Rendered clips: shapes, ranges, determinism, and layouts that keep every object in view."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes.tiny_shapes.backdrop import backdrops
from recipes.tiny_shapes.layout import CANVAS, EXTENT, GAP, MARGIN, sample_layout
from recipes.tiny_shapes.render import render, to_uint8
from recipes.tiny_shapes.scene import COLORS, MOTIONS, SHAPES, Object, Scene, is_visible, sample_scene


def _scene(*objects: tuple[str, str, str]) -> Scene:
    return Scene(tuple(Object(*o) for o in objects))


def _pairs(count: int) -> list[Scene]:
    """Two-object scenes that cover every pair of motions."""
    rng = np.random.default_rng(0)
    scenes = []
    for i in range(count):
        motions = MOTIONS[i % 13], MOTIONS[(i // 13) % 13]
        colors = rng.permutation(COLORS)[:2]
        shapes = [str(rng.choice([s for s in SHAPES if is_visible(s, m)])) for m in motions]
        rows = zip(shapes, colors, motions, strict=True)
        scenes.append(Scene(tuple(Object(s, str(c), m) for s, c, m in rows)))
    return scenes


def test_output_shape_range_and_seed() -> None:
    scenes = [_scene(("circle", "red", "right")), _scene(("star", "blue", "grow"), ("square", "cyan", "up"))]
    video = render(scenes, frames=9, size=64, seed=3)
    assert video.shape == (2, 3, 9, 64, 64)
    assert video.dtype == torch.float32
    assert float(video.min()) >= -1
    assert float(video.max()) <= 1
    assert torch.equal(video, render(scenes, frames=9, size=64, seed=3))
    assert not torch.equal(video, render(scenes, frames=9, size=64, seed=4))
    frames = to_uint8(video)
    assert frames.shape == (2, 9, 64, 64, 3)
    assert frames.dtype == torch.uint8


def test_size_scales_the_same_picture() -> None:
    scenes = [_scene(("triangle", "green", "down_left"))]
    small, large = render(scenes, frames=3, size=64), render(scenes, frames=3, size=128)
    shrunk = torch.nn.functional.avg_pool3d(large, (1, 2, 2))
    assert float((small - shrunk).abs().mean()) < 0.02


def test_area_of_each_shape_matches_geometry() -> None:
    # Areas over corner distance squared: pi, 2, 3 sqrt(3) / 4, and 5 q sin(36 degrees) with q = 0.46.
    ideal = {"circle": np.pi, "square": 2.0, "triangle": 3**0.5 * 0.75, "star": 5 * 0.46 * np.sin(np.pi / 5)}
    scenes = [_scene((shape, "red", "up")) for shape in SHAPES]
    layout = sample_layout(scenes, 2, np.random.default_rng(7))
    video = (render(scenes, frames=2, seed=7)[:, :, 0] + 1) / 2
    chroma = video.amax(1) - video.amin(1)
    for i, shape in enumerate(SHAPES):
        area = float((chroma[i] > 0.4).sum())
        assert area == pytest.approx(ideal[shape] * layout.corner[i, 0, 0] ** 2, rel=0.05)


def test_every_object_stays_in_view_and_clear_of_the_other() -> None:
    scenes = _pairs(13 * 13 * 3)
    layout = sample_layout(scenes, 33, np.random.default_rng(1))
    turning = np.array([[o.motion == "rotate" for o in s.objects] for s in scenes])
    extent = np.where(turning[..., None], 1.0, EXTENT[layout.shape])[:, :, None] * layout.corner[..., None]
    low = layout.center - extent[..., 0::2]
    high = layout.center + extent[..., 1::2]
    assert low.min() > MARGIN - 0.01
    assert high.max() < CANVAS - MARGIN + 0.01
    # At every time the boxes or the bounding circles are apart.
    boxes = np.maximum(low[:, 0] - high[:, 1], low[:, 1] - high[:, 0]).max(-1)
    circles = np.hypot(*np.moveaxis(layout.center[:, 0] - layout.center[:, 1], -1, 0)) - layout.corner.sum(1)
    gap = np.maximum(boxes, circles).min(-1)
    assert np.mean(gap > GAP - 1) > 0.97
    assert gap.min() > -5  # bounding circles of two stars may overlap before the stars do


def test_the_object_named_first_is_left_or_above() -> None:
    """What a student of few steps relies on: the caption, not chance, says which object goes where."""
    rng = np.random.default_rng(3)
    center = sample_layout([sample_scene(rng, 1.0) for _ in range(500)], 17, rng).center
    apart = (center[:, 1] - center[:, 0]).mean(axis=1)  # mean x and y from the first to the second
    assert (apart.max(axis=1) > 0).all()
    swapped = (center[:, 0] - center[:, 1]).mean(axis=1)
    assert not (swapped.max(axis=1) > 0).all()


def test_sizes_speeds_and_turns_are_in_range() -> None:
    rng = np.random.default_rng(2)
    scenes = [sample_scene(rng) for _ in range(500)] + _pairs(169)
    layout = sample_layout(scenes, 33, rng)
    for b, scene in enumerate(scenes):
        for k, obj in enumerate(scene.objects):
            path, corner = layout.center[b, k], layout.corner[b, k]
            travelled = np.hypot(*np.ptp(path, axis=0))
            growth = corner[-1] / corner[0]
            turn = np.degrees(layout.angle[b, k, -1])
            if obj.motion in ("grow", "shrink"):
                assert 1.79 < max(growth, 1 / growth) < 2.41
                assert (growth > 1) == (obj.motion == "grow")
            else:
                assert growth == pytest.approx(1)
                assert corner[0] > 13
            assert (74 < turn < 141) if obj.motion == "rotate" else turn == 0
            in_place = obj.motion in ("grow", "shrink", "rotate")
            assert travelled == 0 if in_place else travelled > (33 if "bounce" in obj.motion else 38)
            assert np.hypot(*np.diff(path, axis=0).T).max() < 11  # px a frame


def test_directions_follow_the_names() -> None:
    scenes = [_scene(("circle", "red", m)) for m in MOTIONS[:8]]
    path = sample_layout(scenes, 5, np.random.default_rng(0)).center[:, 0]
    signs = np.sign(np.round(path[:, -1] - path[:, 0], 2))
    for motion, (x, y) in zip(MOTIONS[:8], signs, strict=True):
        words = motion.split("_")
        assert x == ("right" in words) - ("left" in words)
        assert y == ("down" in words) - ("up" in words)


def test_backgrounds_are_gray_and_vary() -> None:
    gray = backdrops(48, 32, np.random.default_rng(0), "cpu")
    assert gray.shape == (48, 3, 32, 32)
    assert float(gray.min()) > 0.2
    assert float(gray.max()) < 0.95
    assert float((gray.amax(1) - gray.amin(1)).max()) < 0.08
    assert float(gray.mean((1, 2, 3)).std()) > 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_draws_the_same_clips() -> None:
    scenes = _pairs(4)
    near = render(scenes, frames=5, seed=1)
    far = render(scenes, frames=5, seed=1, device="cuda").cpu()
    assert float((near - far).abs().mean()) < 1e-3
