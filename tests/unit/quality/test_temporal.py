"""The temporal measures: what moves is no flicker, what changes its brightness from frame to frame is."""

from __future__ import annotations

import numpy as np
import pytest

from turbort.quality.gates import ratio
from turbort.quality.temporal import temporal

pytest.importorskip("cv2")


def clip(frames: int = 9, shift: float = 2.0, seed: int = 0) -> np.ndarray:
    """A smooth texture that moves to the right by `shift` pixels a frame: uint8 [T, 64, 96, 3]."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(12, 3))
    y, x = np.mgrid[:64, :96].astype(np.float64)
    out = []
    for t in range(frames):
        at = x - shift * t
        image = sum(np.sin(0.25 * a * at + 0.25 * b * y + 6 * c) for a, b, c in waves)
        out.append(np.clip(128 + 18 * image, 0, 255))
    return np.repeat(np.stack(out)[..., None], 3, -1).astype(np.uint8)


def jittered(frames: np.ndarray, amount: float, seed: int = 1) -> np.ndarray:
    """Every frame with a scale of its own: what a quantiser with per-frame scales leaves when they jump."""
    scale = 1 + amount * np.random.default_rng(seed).choice([-1.0, 1.0], size=(len(frames), 1, 1, 1))
    return np.clip(frames * scale, 0, 255).round().astype(np.uint8)


def test_motion_alone_hardly_counts() -> None:
    still, moving = temporal(clip(shift=0.0)), temporal(clip(shift=2.0))
    assert (still.warp, still.flicker) == (0.0, 0.0)
    assert moving.warp < 2.5
    assert moving.flicker < 1.0
    assert len(moving.warp_per_pair) == len(moving.flicker_per_pair) == 8


@pytest.mark.parametrize("amount", [0.02, 0.05])
def test_per_frame_scale_jitter_is_caught(amount: float) -> None:
    """PSNR would let it pass: 2 % of brightness leave 38 dB."""
    from turbort.quality.metrics import psnr

    steady = clip()
    shaken = jittered(steady, amount)
    assert psnr(steady, shaken) > 28
    assert ratio(temporal(shaken).flicker, temporal(steady).flicker) > 1.25


def test_noise_of_a_quantiser_is_not_called_flicker() -> None:
    steady = clip()
    noise = np.random.default_rng(3).normal(0, 1.5, steady.shape)
    noisy = np.clip(steady + noise, 0, 255).round().astype(np.uint8)
    assert ratio(temporal(noisy).flicker, temporal(steady).flicker) < 1.25


def test_a_single_frame_is_steady() -> None:
    assert temporal(clip(frames=1)).flicker == 0.0


def scaled(frames: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Every frame times its gain."""
    return np.clip(frames * gains[:, None, None, None], 0, 255).round().astype(np.uint8)


def latent_gains(frames: int, amount: float, seed: int | None = None) -> np.ndarray:
    """1 + amount, 1 - amount, ... (or in random order) by latent frame, blended between them as a decoder does."""
    count = frames // 4 + 2
    signs = np.array([1.0, -1.0] * count)[:count]
    if seed is not None:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], count)
    return 1 + amount * np.interp(np.arange(frames) / 4, np.arange(count), signs)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_jitter_of_latent_frames_shows_more_than_between_neighbouring_frames(seed: int | None) -> None:
    """1 % of brightness: half a level between neighbours, up to 2.5 levels between latent frames."""
    from turbort.quality.metrics import psnr

    steady = clip(frames=33, shift=1.0)
    shaken = scaled(steady, latent_gains(33, 0.01, seed))
    before, after = temporal(steady), temporal(shaken)
    assert psnr(steady, shaken) > 40
    assert ratio(after.latent, before.latent) > max(2.0, ratio(after.flicker, before.flicker))


def test_what_leaves_the_picture_is_not_compared() -> None:
    """A texture that moves out at one side and in at the other: without its edges it is as steady as the flow is exact."""
    moving = temporal(clip(frames=17, shift=1.0))
    assert moving.warp < 0.2
    assert moving.flicker < 0.15
    assert moving.latent < 0.2


def test_latent_flicker_is_its_formula_on_a_still_video() -> None:
    still = np.full((33, 64, 96, 3), 100, np.uint8)
    signs = np.array([1.0 if t // 4 % 2 else -1.0 for t in range(33)])
    assert temporal(scaled(still, 1 + 0.03 * signs)).latent == pytest.approx(2 * 3.0, abs=0.01)
    assert temporal(scaled(still, 1 + 0.03 * signs), stride=8).latent == 0.0


def test_an_even_fade_is_no_latent_flicker() -> None:
    still = np.full((33, 64, 96, 3), 100, np.uint8)
    fading = scaled(still, np.linspace(1.0, 1.32, 33))
    assert temporal(fading).flicker == pytest.approx(1.0, abs=0.01)
    assert temporal(fading).latent < 0.01


def test_a_video_shorter_than_three_latent_frames_has_no_latent_flicker() -> None:
    shaken = scaled(clip(frames=9, shift=0.0), np.array([1.0, 1, 1, 1, 1.05, 1, 1, 1, 1]))
    assert temporal(shaken[:8]).latent == 0.0
    assert temporal(shaken).latent > 4.0
