"""Where a denoising step's time goes on this device: a model with random weights in a real plan, timed kernel by kernel.

Random weights cost what trained ones cost, so no checkpoint is needed. Quantising passes are the classes `quantisation` (a device
that traces its kernels) or the ops in `QUANTISING` (one that does not, where passes inside a linear count as the linear's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from turbort.backend import Backend, Device
from turbort.bind import Binder
from turbort.models.sites import build_dit
from turbort.models.spec import ModelSpec
from turbort.op import slots
from turbort.plan import Plan
from turbort.planner import DTYPES
from turbort.profile import Profile
from turbort.registry import Registry

QUANTISING = ("quantisation", "quantize")
TURNS = 3
ONES = ("norm.weight", "norm_q.weight", "norm_k.weight", "norm3.weight")


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step: `whole` as a session runs it (compiled or captured), and by class of work in a step run plainly."""

    whole: float
    classes: Mapping[str, float]

    @property
    def idle(self) -> float:
        """Of `whole`, what no class accounts for; negative where capturing saves more than gaps."""
        return self.whole - sum(self.classes.values())

    @property
    def quantising(self) -> float:
        """Share of the step that brings values into another format."""
        return sum(self.classes.get(name, 0.0) for name in QUANTISING) / max(self.whole, 1e-12)


@torch.inference_mode()
def step_times(spec: ModelSpec, profile: Profile, plan: Plan, registry: Registry, device: Device) -> StepTimes:
    """Time one step of `plan` on `device`."""
    backend = registry.backend(device.backend)
    compute = getattr(torch, DTYPES[profile.precision.compute])
    model = random_model(spec, profile, plan, registry, device, compute)
    given = _arguments(model, spec, plan, torch.device(device.torch_name), compute)
    step = backend.compile_step(model, device)
    for call in (step, model):
        call(*given)  # compiles, captures, fills caches
    whole = min(_seconds(backend, device, lambda: step(*given)) for _ in range(TURNS))
    return StepTimes(whole, backend.op_times(device, lambda: model(*given)) or _by_slot(backend, device, model, given))


def random_model(
    spec: ModelSpec, profile: Profile, plan: Plan, registry: Registry, device: Device, compute: torch.dtype
) -> nn.Module:
    """The transformer bound to the plan, its weights random with a trained model's spread, made and packed one at a time."""
    model = build_dit(spec, profile.attention)
    place = torch.device(device.torch_name)
    binder = Binder(model, plan, "dit", registry, device=place, dtype=compute)
    draw = torch.Generator(place).manual_seed(0)
    for name, shape in binder.expected().items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 100
        ones = name.endswith(ONES)
        value = torch.ones(shape, device=place) if ones else torch.randn(shape, device=place, generator=draw) * fan_in**-0.5
        binder.place(name, value)
    return model


def _arguments(model: Any, spec: ModelSpec, plan: Plan, place: torch.device, compute: torch.dtype) -> tuple[Any, ...]:
    """Latents, time and encoded text of one call, as the plan's size and batch have them."""
    (width, height), batch = plan.header["size"], int(plan.header["batch"])
    latent = spec.latent_shape(width, height, plan.header["frames"])[1:]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=place, dtype=torch.float32).to(compute)

    image = draw(batch, spec.image_tokens, spec.dit.image_dim) if spec.dit.image_embed else None
    context = model.encode_text(draw(batch, spec.dit.text_len, spec.dit.text_dim), image)
    return draw(batch, spec.dit.in_channels, *latent), torch.full((batch,), 900.0, device=place), context


def _seconds(backend: Backend, device: Device, call: Callable[[], Any]) -> float:
    backend.synchronize(device)
    started = perf_counter()
    call()
    backend.synchronize(device)
    return perf_counter() - started


def _by_slot(backend: Backend, device: Device, model: nn.Module, given: tuple[Any, ...]) -> dict[str, float]:
    """Seconds by op, waiting for the device around every call site: right for work, too much for what is launched in passing."""
    found: dict[str, float] = {}
    with _timed_slots(backend, device, model, found):
        model(*given)
    return found


@contextmanager
def _timed_slots(backend: Backend, device: Device, model: nn.Module, found: dict[str, float]) -> Iterator[None]:
    sites = list(slots(model).values())
    before = [site.fn for site in sites]

    def timed(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result: list[Any] = []
            seconds = _seconds(backend, device, lambda: result.append(fn(*args, **kwargs)))
            found[name] = found.get(name, 0.0) + seconds
            return result[0]

        return call

    for site in sites:
        site.fn = timed(site.op.name, site.fn)
    try:
        yield
    finally:
        for site, fn in zip(sites, before, strict=True):
            site.fn = fn
