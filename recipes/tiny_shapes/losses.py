"""Losses of rCM: continuous-time consistency (sCM) and score distillation (DMD) with a network that tracks the student.

Angles: x = cos(a) x0 + sin(a) eps with a in (0, pi/2). The networks are rectified flows v(x', t') with
x' = x / (cos a + sin a) and t' = sin a / (cos a + sin a), which gives the angle field
F = (cos a - sin a) / (cos a + sin a) x + v / (cos a + sin a), and x0 = cos(a) x - sin(a) F.
Sources: rCM (arXiv 2510.08431), sCM (arXiv 2410.11081), DMD2 (arXiv 2405.14867).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipes.tiny_shapes.common import autocast
from recipes.tiny_shapes.nets import DENSE, Dit, Mode
from recipes.tiny_shapes.sampling import guided, rcm_times

TIME_SHIFT = 3.0  # of the times at which scores are compared
ANGLE_MEAN, ANGLE_STD = 0.7, 1.6  # log tan(a) of consistency training
PLAIN = Mode(plain=True)


def spread(t: Tensor) -> Tensor:
    """[B] to [B, 1, 1, 1, 1]."""
    return t.view(-1, 1, 1, 1, 1)


def angle_field(net: nn.Module, x: Tensor, angle: Tensor, text: Tensor, mode: Mode) -> Tensor:
    """F of the flow `net` at angle [B]."""
    c, s = torch.cos(angle), torch.sin(angle)
    total = spread(c + s)
    v = net(x / total, s / (c + s), text, mode)
    return spread((c - s) / (c + s)) * x + v / total


def consistency_direction(
    field: Tensor, teacher: Tensor, tangent: Tensor, x: Tensor, angle: Tensor, ramp: Tensor | float
) -> Tensor:
    """Normalised tangent g of sCM, unit mean square.

    g = -cos a sqrt(1 - r^2 sin^2 a) (F - F_teacher) - (r cos a sin a x + cos a sin a dF/da); the ramp r goes from 0,
    where g only pulls towards the teacher, to 1.
    """
    c, s = spread(torch.cos(angle)), spread(torch.sin(angle))
    g = -c * torch.sqrt(1 - ramp**2 * s**2) * (field - teacher) - (ramp * c * s * x + tangent)
    g = torch.nan_to_num(g, 0.0, 0.0, 0.0)
    return g / (g.square().mean((1, 2, 3, 4), keepdim=True).sqrt() + 1e-3)


def dmd_direction(sample: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """(fake - real) / mean |sample - real| per clip: where the student should move against."""
    scale = (sample - real).abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-5)
    return torch.nan_to_num((fake - real) / scale, 0.0, 0.0, 0.0)


@dataclass
class Distiller:
    """Student, teacher and tracker (`fake`), with the guidance that the student is to absorb."""

    student: Dit
    teacher: Dit
    fake: Dit
    guidance: float
    null: Tensor  # embedding of the empty caption [1, L, D]
    mode: Mode = DENSE  # of the student

    def guided_velocity(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        with torch.no_grad():
            return guided(self.teacher, text, self.null, self.guidance)(x, t)

    def autocast_velocity(self, x: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor]:
        """The same as a tuple and under autocast, for `trajectories`."""
        with torch.no_grad(), autocast(x.device):
            return (self.guided_velocity(x, t, text),)

    def rollout(self, text: Tensor, shape: tuple[int, ...], steps: int, *, grad: bool) -> Tensor:
        """x0 after `steps` sampler steps; with `grad` the last one carries gradients."""
        times = rcm_times(4)
        x = torch.randn(len(text), *shape, device=text.device) * times[0]
        for i in range(steps):
            last = i == steps - 1
            t = torch.full((len(x),), times[i], device=x.device)
            with torch.set_grad_enabled(grad and last), autocast(x.device):
                x0 = x - times[i] * self.student(x, t, text, self.mode)
            if last:
                return x0
            x = (1 - times[i + 1]) * x0 + times[i + 1] * torch.randn_like(x0)
        raise ValueError("steps must be at least 1")

    def draw_noisy(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, t, eps) at a random time."""
        u = torch.rand(len(x0), device=x0.device)
        t = (TIME_SHIFT * u / (1 + (TIME_SHIFT - 1) * u)).clamp(0.02, 0.998)
        eps = torch.randn_like(x0)
        return (1 - spread(t)) * x0 + spread(t) * eps, t, eps

    def fake_loss(self, text: Tensor, shape: tuple[int, ...], steps: int) -> Tensor:
        """Flow matching of the tracker on the student's samples."""
        x0 = self.rollout(text, shape, steps, grad=False)
        x, t, eps = self.draw_noisy(x0)
        with autocast(x.device):
            return (self.fake(x, t, text) - (eps - x0)).square().mean()

    def dmd_loss(self, text: Tensor, shape: tuple[int, ...], steps: int) -> Tensor:
        """Its gradient is the difference of scores at a noised sample of the student."""
        x0 = self.rollout(text, shape, steps, grad=True)
        with torch.no_grad(), autocast(x0.device):
            x, t, _ = self.draw_noisy(x0)
            real = x - spread(t) * self.guided_velocity(x, t, text)
            fake = x - spread(t) * self.fake(x, t, text)
            direction = dmd_direction(x0, real, fake)
        return 0.5 * (x0 - (x0.detach() - direction)).square().mean()

    def scm_loss(self, x0: Tensor, text: Tensor, ramp: Tensor | float) -> Tensor:
        """Consistency along the teacher's guided flow, with the tangent dF/da from forward-mode differentiation."""
        sigma = torch.exp(ANGLE_MEAN + ANGLE_STD * torch.randn(len(x0), device=x0.device))
        angle = torch.atan(sigma)
        c, s = spread(torch.cos(angle)), spread(torch.sin(angle))
        x = c * x0 + s * torch.randn_like(x0)
        with torch.no_grad():
            with autocast(x.device):
                v = self.guided_velocity(x / (c + s), torch.sin(angle) / (torch.cos(angle) + torch.sin(angle)), text)
            teacher = (c - s) / (c + s) * x + v / (c + s)
            along = torch.cos(angle) * torch.sin(angle)
            with torch.autocast(x.device.type, enabled=False):
                _, tangent = torch.func.jvp(
                    lambda a, b: angle_field(self.student, a, b, text.float(), PLAIN),
                    (x, angle), (spread(along) * teacher, along),
                )  # fmt: skip
        with autocast(x.device):
            field = angle_field(self.student, x, angle, text, self.mode)
        direction = consistency_direction(field.detach(), teacher, tangent, x, angle, ramp)
        return 0.5 * (field - (field.detach() + direction)).square().mean()


@torch.no_grad()
def trajectories(
    velocity: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]], text: Tensor, shape: tuple[int, ...],
    substeps: tuple[int, ...] = (3, 4, 6, 11),
) -> tuple[Tensor, list[float], Tensor]:  # fmt: skip
    """The flow of `velocity(x, t, text)` from the student's first time to 0 through all of the student's times.

    Returns states [K, B, ...] (bfloat16) with their K times and the end points [B, ...].
    """
    times = rcm_times(4)
    grid = [a + (b - a) * i / n for a, b, n in zip(times[:-1], times[1:], substeps, strict=True) for i in range(n)] + [0.0]
    x = torch.randn(len(text), *shape, device=text.device) * grid[0]
    states = []
    for now, then in itertools.pairwise(grid):
        states.append(x.to(torch.bfloat16))
        (v,) = velocity(x, torch.full((len(x),), now, device=x.device), text)
        x = x + (then - now) * v
    return torch.stack(states), grid[:-1], x
