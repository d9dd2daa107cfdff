"""The judge: right on real clips (also degraded ones), wrong on every kind of wrong clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from recipes.tiny_shapes.oracle import Verdict, compare, detect, judge
from recipes.tiny_shapes.render import render, to_uint8
from recipes.tiny_shapes.scene import COLORS, MOTIONS, SHAPES, Object, Scene, is_visible, sample_scene

Array = NDArray[Any]
COUNT = 36


@pytest.fixture(scope="module")
def clips() -> list[tuple[Scene, Array]]:
    rng = np.random.default_rng(11)
    singles = [Scene((Object(SHAPES[1 + i % 3], COLORS[i % 6], m),)) for i, m in enumerate(MOTIONS)]
    scenes = singles + [sample_scene(rng) for _ in range(COUNT - len(singles))]
    return list(zip(scenes, to_uint8(render(scenes, seed=5)).numpy(), strict=True))


def _each(change: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda frames: np.stack([change(f) for f in frames])


def _blur(frame: Array) -> Array:
    return np.asarray(cv2.GaussianBlur(frame, (0, 0), 1.5))


def _blocks(frame: Array) -> Array:
    _, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]


def _half(frame: Array) -> Array:
    small = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (128, 128), interpolation=cv2.INTER_LINEAR))


def _tint(frame: Array) -> Array:
    return (frame.astype(np.int16) + np.array([8, -8, 8])).clip(0, 255).astype(np.uint8)


def test_clean_clips_are_fully_right(clips: list[tuple[Scene, Array]]) -> None:
    for scene, frames in clips:
        verdict = judge(frames, scene)
        assert verdict.fully_right, (scene, verdict)


@pytest.mark.parametrize("change", [_blur, _blocks, _half, _tint])
def test_degraded_clips_are_fully_right(clips: list[tuple[Scene, Array]], change: Callable[[Array], Array]) -> None:
    for scene, frames in clips[::2]:
        verdict = judge(_each(change)(frames), scene)
        assert verdict.fully_right, (scene, verdict)


def _mismatches(scene: Scene) -> Iterator[tuple[str, int, Scene]]:
    """Every valid scene that differs from `scene` in one attribute of one object."""
    for i, obj in enumerate(scene.objects):
        options = {"shape": SHAPES, "color": COLORS, "motion": MOTIONS}
        for name, values in options.items():
            for value in values:
                other = {"shape": obj.shape, "color": obj.color, "motion": obj.motion, name: value}
                taken = [o.color for k, o in enumerate(scene.objects) if k != i]
                if other["color"] in taken or not is_visible(other["shape"], other["motion"]):
                    continue
                if value == getattr(obj, name):
                    continue
                objects = list(scene.objects)
                objects[i] = replace(obj, **{name: value})
                yield name, i, Scene(tuple(objects))


def test_one_wrong_attribute_is_noticed_and_named(clips: list[tuple[Scene, Array]]) -> None:
    for scene, frames in clips[::2]:
        seen = detect(frames)
        for name, i, wrong in _mismatches(scene):
            verdict = compare(seen, wrong)
            assert not verdict.fully_right, (scene, wrong)
            oks = verdict.objects[i]
            flags = {"shape": oks.shape_ok, "color": oks.color_ok, "motion": oks.motion_ok}
            assert [k for k, ok in flags.items() if not ok] == [name], (scene, wrong, verdict)


def test_missing_and_surplus_objects_are_wrong(clips: list[tuple[Scene, Array]]) -> None:
    scene, frames = next((s, f) for s, f in clips if len(s.objects) == 2)
    verdict = judge(frames, Scene(scene.objects[:1]))
    assert verdict.objects[0].right
    assert [d.color for d in verdict.extra] == [scene.objects[1].color]
    assert not verdict.fully_right
    single, lone = clips[0]
    unused = next(c for c in COLORS if c != single.objects[0].color)
    asked = Scene((*single.objects, Object("star", unused, "up")))
    missing = judge(lone, asked)
    assert missing.objects[1].found is None
    assert not missing.fully_right


def _freeze(frames: Array) -> Array:
    return np.repeat(frames[len(frames) // 2][None], len(frames), axis=0)


def test_static_and_reversed_clips_are_wrong(clips: list[tuple[Scene, Array]]) -> None:
    for scene, frames in clips[:13]:
        still = judge(_freeze(frames), scene)
        assert not still.fully_right
        assert [d.motion for d in detect(_freeze(frames))] == ["still"]
        if "bounce" not in scene.objects[0].motion:
            assert not judge(frames[::-1], scene).fully_right


def test_half_the_motion_backwards_is_not_the_motion(clips: list[tuple[Scene, Array]]) -> None:
    for scene, frames in clips[:8]:
        there_and_back = np.concatenate([frames[::2], frames[::2][-2::-1]])
        assert not judge(there_and_back, scene).fully_right


def test_object_seen_half_the_time_is_wrong(clips: list[tuple[Scene, Array]]) -> None:
    scene, frames = clips[0]
    gone = frames.copy()
    gone[10:26] = 128
    assert not judge(gone, scene).fully_right


def test_second_object_of_the_same_colour_is_noticed(clips: list[tuple[Scene, Array]]) -> None:
    scene, frames = clips[10]
    assert scene.objects[0].motion == "rotate"
    twin = np.maximum(frames, 0).copy()
    mask = (frames.max(-1).astype(int) - frames.min(-1)) > 64
    for t in range(len(twin)):
        moved, place = np.roll(frames[t], 64, (0, 1)), np.roll(mask[t], 64, (0, 1))
        twin[t][place] = moved[place]
    verdict: Verdict = judge(twin, scene)
    assert not verdict.fully_right


@pytest.mark.parametrize("sigma", [0.0, 2.0, 6.0, 12.0])
def test_noise_is_wrong(sigma: float) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (17, 128, 128, 3))
    if sigma:
        noise = np.stack([cv2.GaussianBlur(f, (0, 0), sigma) for f in noise])
    frames = (128 + 90 * noise / noise.std()).clip(0, 255).astype(np.uint8)
    for motion in MOTIONS:
        assert not judge(frames, Scene((Object("star", "red", motion),))).fully_right


def test_gray_clip_has_no_objects() -> None:
    frames = np.full((9, 128, 128, 3), 120, np.uint8)
    assert detect(frames) == ()


def test_frames_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        detect(np.zeros((3, 8, 8, 3), np.float32))
