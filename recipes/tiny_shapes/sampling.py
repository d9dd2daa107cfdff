"""Samplers over latents, for batches: Euler with guidance for the teacher, rCM for the student."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from recipes.tiny_shapes.config import RCM_TIMES, SIGMA_MAX

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x, t [B] in [0, 1]) -> velocity


def rcm_times(steps: int, sigma_max: float = SIGMA_MAX) -> list[float]:
    """Times of `steps` rCM steps and 0: sin a / (sin a + cos a) of the angles atan(sigma_max), 1.5, 1.4, 1.0, 0."""
    angles = [math.atan(sigma_max), *RCM_TIMES][:steps] + [0.0]
    return [math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles]


def rcm_sample(velocity: Velocity, noise: Tensor, steps: int, generator: torch.Generator | None = None) -> Tensor:
    """x0 from unit noise: each step predicts x0 and mixes in fresh noise, x <- (1 - t') (x - t v) + t' eps."""
    times = rcm_times(steps)
    x = noise * times[0]
    for now, then in itertools.pairwise(times):
        x = x - now * velocity(x, torch.full((len(x),), now, device=x.device))
        if then:
            fresh = torch.randn(x.shape, device=x.device, generator=generator)
            x = (1 - then) * x + then * fresh
    return x


def euler_times(steps: int, shift: float) -> list[float]:
    """steps + 1 times from 1 to 0, t = shift u / (1 + (shift - 1) u)."""
    return [shift * u / (1 + (shift - 1) * u) for u in (1 - i / steps for i in range(steps + 1))]


def euler_sample(velocity: Velocity, noise: Tensor, steps: int, shift: float, keep: list[Tensor] | None = None) -> Tensor:
    """x0 from unit noise along the velocity; `keep` receives the state at every time."""
    times = euler_times(steps, shift)
    x = noise
    for now, then in itertools.pairwise(times):
        if keep is not None:
            keep.append(x)
        x = x + (then - now) * velocity(x, torch.full((len(x),), now, device=x.device))
    return x


def guided(net: Callable[..., Tensor], text: Tensor, null: Tensor, scale: float) -> Velocity:
    """Velocity with classifier-free guidance, v = v0 + scale (v1 - v0), both passes in one batch."""
    if scale == 1.0:
        return lambda x, t: net(x, t, text)
    both = torch.cat((text, null.expand_as(text)))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v1, v0 = net(torch.cat((x, x)), torch.cat((t, t)), both).chunk(2)
        return v0 + scale * (v1 - v0)

    return velocity
