"""UniPC, the multistep sampler that undistilled Wan models are run with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from turbort.models.sampler import TRAIN_STEPS, Sampler, Step, Velocity, check_steps, shifted

EPSILON = 1e-6


class Past(NamedTuple):
    """A model estimate of the clean latents and the half log-SNR it was made at."""

    lam: float
    clean: Tensor


class UniPC(Sampler):
    """Predictor-corrector of order 2, B(h) = e^h - 1 ("bh2"), data prediction, with the schedule of flow models.

    With lambda = log((1 - s) / s), h = lambda' - lambda and estimates m of the clean latents:
        predictor  x' = s'/s x - (1 - s') (e^-h - 1) (m0 + (m1 - m0) / (2 r)),  r = (lambda_1 - lambda_0) / h
        corrector  the same with weights rho solved for order 2, after the model has been called at x'.
    The first step and the last are of order 1. Source: UniPC (arXiv 2302.04867). The noise levels are evenly spaced from
    1 - 1e-6 before the shift, rounded to float32, and the model is told whole numbers, as in the common implementations.
    """

    def __init__(self, steps: int, *, shift: float = 5.0) -> None:
        check_steps(steps)
        low = 1 / TRAIN_STEPS
        levels = [shifted(1 + (low - 1) * i / steps, shift) for i in range(steps)]
        levels[0] -= EPSILON
        self.times = tuple(float(int(s * TRAIN_STEPS)) for s in levels)
        self.sigmas = tuple(torch.tensor([*levels, 0.0], dtype=torch.float32).tolist())
        self._reset()

    def _reset(self) -> None:
        self._before: Tensor | None = None
        self._order = 1
        self._past: list[Past] = []

    def steps(self, velocity: Velocity, noise: Callable[[], Tensor]) -> Iterator[Step]:
        self._reset()
        yield from super().steps(velocity, noise)

    def update(self, index: int, x: Tensor, clean: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        sigma = self.sigmas[index]
        if self._before is not None:
            x = self._correct(self._before, self.sigmas[index - 1], sigma, clean)
        self._past = [*self._past[-1:], Past(half_log_snr(sigma), clean)]
        self._before = x
        then = self.sigmas[index + 1]
        if then == 0.0:
            return clean
        self._order = min(2, len(self) - index, len(self._past))
        return self._predict(x, sigma, then)

    def _predict(self, x: Tensor, sigma: float, then: float) -> Tensor:
        now = self._past[-1]
        h = half_log_snr(then) - now.lam
        y = then / sigma * x - (1 - then) * math.expm1(-h) * now.clean
        if self._order == 1:
            return y
        old = self._past[-2]
        slope = (old.clean - now.clean) * (h / (old.lam - now.lam))
        return y - (1 - then) * math.expm1(-h) * 0.5 * slope

    def _correct(self, x: Tensor, sigma: float, then: float, clean: Tensor) -> Tensor:
        now = self._past[-1]
        h = half_log_snr(then) - now.lam
        growth = math.expm1(-h)
        y = then / sigma * x - (1 - then) * growth * now.clean
        if self._order == 1:
            return y - (1 - then) * growth * 0.5 * (clean - now.clean)
        old = self._past[-2]
        r = (old.lam - now.lam) / h
        first, second = corrector_weights(-h, r)
        change = first / r * (old.clean - now.clean) + second * (clean - now.clean)
        return y - (1 - then) * growth * change


def half_log_snr(sigma: float) -> float:
    """lambda = log((1 - sigma) / sigma)."""
    return math.log(1 - sigma) - math.log(sigma)


def corrector_weights(h: float, r: float) -> tuple[float, float]:
    """The solution of rho1 + rho2 = b1, r rho1 + rho2 = b2 with b_k = k! phi_{k+1}(h) h^.. / (e^h - 1) of UniC-2."""
    growth = math.expm1(h)
    phi2 = growth / h - 1
    phi3 = phi2 / h - 0.5
    b1, b2 = phi2 / growth, 2 * phi3 / growth
    first = (b1 - b2) / (1 - r)
    return first, b1 - first
