"""Samplers: from noise to latents in a few calls of a velocity model.

Rectified flow: x_t = (1 - t) x_0 + t * noise, t in [0, 1], and the model predicts velocity v = noise - x_0.
The state is float32 on the model's device; noise is drawn on the CPU, so that a seed means the same on every device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from turbort.errors import InputError, unknown
from turbort.models.config import Preset, SamplerName

Velocity = Callable[[Tensor, float], Tensor]
"""velocity(x, t): x [B, C, T, H, W] float32, t the model's time in [0, 1000]; returns a tensor of x's shape."""

TRAIN_STEPS = 1000.0


@dataclass(frozen=True)
class Step:
    """State after one model call: `x` is the new state, `clean` the estimate of the finished latents (for previews)."""

    index: int
    total: int
    t: float
    x: Tensor
    clean: Tensor


class Noise:
    """Standard normal noise with one CPU generator per sample, so that a sample does not depend on its batch."""

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.shape = tuple(shape)
        self.device = torch.device(device)
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def __call__(self) -> Tensor:
        """The next [len(seeds), *shape] in float32."""
        draws = [torch.randn(self.shape, generator=generator) for generator in self._generators]
        return torch.stack(draws).to(self.device)


class Sampler(ABC):
    """A schedule and an update rule.

    `sigmas` are the noise levels visited, from the first to 0; `times` is what the model is told at each call, in [0, 1000].
    """

    sigmas: tuple[float, ...]
    times: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.times)

    def steps(self, velocity: Velocity, noise: Callable[[], Tensor]) -> Iterator[Step]:
        """Call the model once per step and yield after each; stop iterating to cancel. The last `Step.x` are the latents.

        `noise()` gives fresh standard normal noise in the shape of the latents; the first draw is where sampling starts.
        """
        x = self.start(noise())
        for index, t in enumerate(self.times):
            clean = x - self.sigmas[index] * velocity(x, t).float()
            x = self.update(index, x, clean, noise)
            yield Step(index, len(self), t, x, clean)

    def start(self, noise: Tensor) -> Tensor:
        """The first state."""
        return noise

    @abstractmethod
    def update(self, index: int, x: Tensor, clean: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """The state at `sigmas[index + 1]`, given that at `sigmas[index]` and the model's estimate of the clean latents."""


class Rcm(Sampler):
    """Consistency sampling of an rCM-distilled model: jump to the clean latents, put fresh noise back, repeat.

    x <- (1 - t') (x - t v) + t' * noise, at t = sin a / (sin a + cos a) for a = atan(sigma_max), 1.5, 1.4, 1.0, then 0;
    the first state is t * noise. With `ode` the noise is the one the model itself predicts.

    TurboDiffusion keeps the state in float64. In float32 four steps end a relative 2e-7 away from that when the model
    computes in float32, and 3e-3 away when it computes in bfloat16, where a last bit of the state can flip the rounding of
    a model input; bfloat16 itself moves the same result by 1e-2 (tests/unit/models/test_sampler.py). TurboDiffusion also
    rounds 1000 t to bfloat16 before the call; this sampler does not.
    """

    angles = (1.5, 1.4, 1.0)

    def __init__(self, steps: int = 4, *, sigma_max: float = 80.0, ode: bool = False) -> None:
        if not 1 <= steps <= 1 + len(self.angles):
            raise InputError(f"rCM has schedules of 1 to {1 + len(self.angles)} steps, not {steps}", fix="use --steps 4")
        angles = (math.atan(sigma_max), *self.angles[: steps - 1])
        self.sigmas = (*(math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles), 0.0)
        self.times = tuple(TRAIN_STEPS * t for t in self.sigmas[:-1])
        self.ode = ode

    def start(self, noise: Tensor) -> Tensor:
        return noise * self.sigmas[0]

    def update(self, index: int, x: Tensor, clean: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        t, then = self.sigmas[index], self.sigmas[index + 1]
        if then == 0.0:
            return clean
        if self.ode:
            return x - (t - then) / t * (x - clean)
        return (1 - then) * clean + then * noise()


class Euler(Sampler):
    """x <- x + (t' - t) v at `steps` times evenly spaced in [0, 1] before the shift."""

    def __init__(self, steps: int, *, shift: float = 1.0) -> None:
        check_steps(steps)
        self.sigmas = tuple(shifted(1 - i / steps, shift) for i in range(steps + 1))
        self.times = tuple(TRAIN_STEPS * t for t in self.sigmas[:-1])

    def update(self, index: int, x: Tensor, clean: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        t, then = self.sigmas[index], self.sigmas[index + 1]
        return clean + then / t * (x - clean)


def shifted(t: float, shift: float) -> float:
    """shift * t / (1 + (shift - 1) t): more steps at high noise for shift > 1."""
    return shift * t / (1 + (shift - 1) * t)


def check_steps(steps: int) -> None:
    """InputError unless there is at least one step."""
    if steps < 1:
        raise InputError(f"a sampler needs at least 1 step, not {steps}", fix="use --steps 1 or more")


def build_sampler(name: SamplerName, preset: Preset) -> Sampler:
    """The sampler `name` with the settings of `preset`; InputError for one that does not exist or cannot do the steps."""
    if name == "rcm":
        return Rcm(preset.steps, sigma_max=preset.sigma_max)
    if name == "euler":
        return Euler(preset.steps, shift=preset.shift)
    if name == "unipc":
        from turbort.models.unipc import UniPC

        return UniPC(preset.steps, shift=preset.shift)
    raise unknown("sampler", name, ("rcm", "euler", "unipc"))
