"""Sampling a group of jobs: noise to latents with guidance, experts and image conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from turbort.conditions import Conditions, first_frame_times, hold_first_frame, holding_first_frame
from turbort.experts import Experts
from turbort.guard.adapt import Adaptation
from turbort.guard.monitor import Monitor
from turbort.job import Job
from turbort.models.config import ModelSpec
from turbort.models.dit_layers import CrossKV
from turbort.models.guidance import by_noise, guided
from turbort.models.sampler import TRAIN_STEPS, Noise, Sampler, Step, Velocity, build_sampler


class Denoiser:
    """Velocity functions for one group: text is encoded once per expert, and experts change with the noise.

    Args:
        texts, negatives: embeddings [B, text_len, text_dim]; `negatives` is None without guidance.
        together: whether a guidance pair runs as one batch.
        int8_cache: keep the keys and values of cross-attention, which serve every step, in int8.
        adaptation: chooses the strength level of every step; None where the plan has none.
    """

    def __init__(
        self,
        spec: ModelSpec,
        experts: Experts,
        texts: Tensor,
        negatives: Tensor | None,
        conditions: Conditions,
        *,
        device: torch.device,
        compute: torch.dtype,
        together: bool,
        int8_cache: bool = False,
        adaptation: Adaptation | None = None,
    ) -> None:
        self.spec, self.experts, self.texts, self.negatives = spec, experts, texts, negatives
        self.conditions, self.device, self.compute, self.together = conditions, device, compute, together
        self._begun: set[str] = set()
        self.int8_cache = int8_cache
        self.adaptation = adaptation
        self._encoded: dict[str, tuple[Sequence[CrossKV], Sequence[CrossKV] | None]] = {}

    def steps(self, job: Job, seeds: Sequence[int]) -> Iterator[Step]:
        """The states of the sampler; the last one's `x` are the latents [B, z, T, h, w] in float32."""
        shape = self.spec.latent_shape(job.width or 0, job.height or 0, job.frames or 0)
        sampler = sampler_of(self.spec, job)
        velocity = self.velocity(job, sampler.times)
        for state in sampler.steps(velocity, Noise(seeds, shape, self.device)):
            if self.adaptation is not None:
                self.adaptation.seen(state.clean)
            yield state

    def velocity(self, job: Job, times: Sequence[float]) -> Velocity:
        """The velocity at the sampler's `times`, with guidance and the expert for the noise."""
        roles = self.experts.roles
        scale = job.guidance or 1.0
        if len(roles) == 1:
            return self._expert(roles[0], scale)
        boundary = self.spec.boundary or 0.0
        low = scale if job.guidance_low is None else job.guidance_low
        last_high = min((t for t in times if t >= boundary * TRAIN_STEPS), default=None)
        both = by_noise(self._expert(roles[0], scale), self._expert(roles[1], low), boundary)

        def velocity(x: Tensor, t: float) -> Tensor:
            if t == last_high:
                # The encoded text of the next expert needs it on the device, so only its weights can come early.
                self.experts.get(roles[0])
                self.experts.prefetch(roles[1])
            return both(x, t)

        return velocity

    def _expert(self, role: str, scale: float) -> Velocity:
        def velocity(x: Tensor, t: float) -> Tensor:
            text, negative = self._context(role)
            predict = self._predict(role)
            guide = guided(predict, text, negative if scale != 1.0 else None, scale, together=self.together)
            monitor = self._monitor(role)
            # Blocks that are streamed after all have no second kernels.
            adaptation = self.adaptation if monitor.board is not None else None
            level = adaptation.level(t) if adaptation is not None else frozenset()
            other = self._at_other_level(guide, monitor, x, t)
            monitor.before(level)
            y = guide(x, t)
            if monitor.after():
                y = guide(x, t)  # sites were promoted on what this step showed: once more, with their second kernels
            elif adaptation is not None and other is not None:
                result, ran = other
                if adaptation.compared(*(x - t / TRAIN_STEPS * made.float() for made in (y, result))):
                    y = result
                    monitor.instead(ran)
            first = self.conditions.first
            return y if first is None else holding_first_frame(x, y, first, t / TRAIN_STEPS)

        return velocity

    def _at_other_level(self, guide: Velocity, monitor: Monitor, x: Tensor, t: float) -> tuple[Tensor, frozenset[str]] | None:
        """Where comparing levels decides on them, the velocity at the one farthest from the step's own, and what ran promoted."""
        if self.adaptation is None or monitor.board is None or self.adaptation.other is None:
            return None
        monitor.board.strengthen(self.adaptation.other)
        return guide(x, t), monitor.board.active

    def _monitor(self, role: str) -> Monitor:
        """The monitor of a role, which begins anew with the first step of these jobs."""
        monitor = self.experts.get(role).monitor
        if role not in self._begun:
            self._begun.add(role)
            monitor.begin()
        return monitor

    def _context(self, role: str) -> tuple[Sequence[CrossKV], Sequence[CrossKV] | None]:
        if role not in self._encoded:
            model = self.experts.get(role).model
            tokens = self.conditions.tokens
            self._encoded.clear()
            negative = None if self.negatives is None else self._kept(model.encode_text(self.negatives, tokens))
            self._encoded[role] = self._kept(model.encode_text(self.texts, tokens)), negative
        return self._encoded[role]

    def _kept(self, encoded: Sequence[CrossKV]) -> Sequence[CrossKV]:
        return [block.kept() for block in encoded] if self.int8_cache else encoded

    def _predict(self, role: str) -> Callable[[Tensor, float, Sequence[CrossKV]], Tensor]:
        step = self.experts.get(role).step

        def predict(x: Tensor, t: float, context: Sequence[CrossKV]) -> Tensor:
            given = self.conditions.repeated(len(x)) if self.conditions != Conditions() else self.conditions
            times = torch.full((len(x),), t, device=self.device)
            if given.first is not None:
                x = hold_first_frame(x, given.first)
                grid = tuple(size // patch for size, patch in zip(x.shape[2:], self.spec.dit.patch, strict=True))
                times = first_frame_times(t, (grid[0], grid[1], grid[2]), batch=len(x), device=self.device)
            if given.channels is None:
                return step(x.to(self.compute), times, context)
            return step(x.to(self.compute), times, context, condition=given.channels)

        return predict


def sampler_of(spec: ModelSpec, job: Job) -> Sampler:
    """The sampler of a job, with the job's number of steps."""
    return build_sampler(spec.sampler, replace(spec.preset, steps=job.steps or spec.preset.steps))
