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
