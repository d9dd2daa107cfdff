"""Image metrics against their definitions, and gates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from turbort.quality.gates import Number, all_passed, at_least, at_most, informative
from turbort.quality.metrics import PSNR_CAP, latent_psnr, psnr, psnr_of_frames, ssim_of_frames

pytest.importorskip("skimage")


def test_psnr_is_its_formula() -> None:
    a = np.full((2, 16, 16, 3), 100, np.uint8)
    b = a + np.uint8(5)
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr_of_frames(a, b) == pytest.approx([34.15, 34.15], abs=0.01)
    assert psnr(a, a) == PSNR_CAP


def test_ssim_falls_with_structure() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 255, (2, 24, 24, 3), dtype=np.uint8)
    assert ssim_of_frames(a, a) == [1.0, 1.0]
    assert max(ssim_of_frames(a, a[:, ::-1])) < 0.2


def test_latents_are_measured_by_their_own_range() -> None:
    a = torch.tensor([0.0, 2.0, 4.0])
    assert latent_psnr(a, a + 0.4) == pytest.approx(20.0, abs=1e-4)
    assert latent_psnr(10 * a, 10 * a + 4) == pytest.approx(20.0, abs=1e-4)
    assert latent_psnr(a, a) == PSNR_CAP


def test_only_judged_numbers_can_fail() -> None:
    good, bad = at_least("x", 30, 28, gate="video"), at_most("y", 2, 1.25, gate="temporal")
    assert (good.passed, bad.passed, at_least("z", None, 1, gate="video").passed) == (True, False, False)
    assert all_passed([good, informative("lpips", None)])
    assert not all_passed([good, bad])
    assert Number("n", 1.0).as_data()["gate"] == ""
