"""The arguments that a run gives to a compiled step, without a run: a backend that compiles ahead of time needs their shapes.

They come from the denoiser itself, on fake tensors, so that guidance, batch and conditions are those of a run.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from turbort.batching import Batching
from turbort.conditions import Conditions
from turbort.denoise import Denoiser, sampler_of
from turbort.experts import Expert, Experts
from turbort.guard.monitor import Watch, make_monitor
from turbort.job import Job, passes
from turbort.models.spec import ModelSpec
from turbort.models.wan_dit import WanDit
from turbort.plan import Plan
from turbort.planner import DTYPES
from turbort.profile import Profile

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def first_call(model: WanDit, spec: ModelSpec, profile: Profile, plan: Plan, job: Job) -> Arguments:
    """Positional and named arguments of the first call of the step in a run of `plan`, as uninitialised tensors on the host.

    `model` is bound, its weights need no values; `job` is resolved and has the plan's size. A text-to-video model gets no image.
    """
    compute = getattr(torch, DTYPES[profile.precision.compute])
    each, host = passes(job), torch.device("cpu")
    jobs = [job] * max(1, int(plan.header["batch"]) // each)
    times = sampler_of(spec, job).times
    seen: list[Arguments] = []

    def step(*args: Any, **kwargs: Any) -> Tensor:
        seen.append((args, kwargs))
        return torch.empty_like(args[0])

    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
        text = torch.empty(len(jobs), spec.dit.text_len, spec.dit.text_dim, dtype=compute)
        denoiser = Denoiser(
            spec,
            cast("Experts", _Alone(spec, Expert(model, step, make_monitor("dit", Watch(), model, None, host)))),
            text,
            text if each == 2 else None,
            _conditions(spec, job, len(jobs), compute),
            device=host,
            compute=compute,
            int8_cache=profile.memory.activation_cache.startswith("int8"),
            together=Batching(profile, len(jobs) * each, len(jobs) * each).together(jobs),
        )
        denoiser.velocity(job, times)(torch.empty(len(jobs), *_latents(spec, job)), times[0])
    # Made outside of any mode, as a run's tensors are not fake; memory that is never touched costs nothing.
    with torch.inference_mode(False):
        return cast("Arguments", pytree.tree_map_only(Tensor, lambda x: torch.empty(x.shape, dtype=x.dtype), seen[0]))


class _Alone:
    """Experts with one transformer in every role, which is always there."""

    def __init__(self, spec: ModelSpec, expert: Expert) -> None:
        self.roles = spec.experts or ("dit",)
        self._expert = expert

    def get(self, role: str) -> Expert:
        return self._expert

    def prefetch(self, role: str) -> None:
        pass


def _latents(spec: ModelSpec, job: Job) -> tuple[int, ...]:
    return tuple(spec.latent_shape(job.width or 0, job.height or 0, job.frames or 0))


def _conditions(spec: ModelSpec, job: Job, batch: int, compute: torch.dtype) -> Conditions:
    """What the image of an image-to-video model becomes."""
    if spec.task != "i2v":
        return Conditions()
    channels, *size = _latents(spec, job)
    given = torch.empty(batch, spec.dit.in_channels - channels, *size, dtype=compute)
    if not spec.dit.image_embed:
        return Conditions(given)
    return Conditions(given, tokens=torch.empty(batch, spec.image_tokens, spec.dit.image_dim, dtype=compute))
