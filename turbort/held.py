"""What a session holds on its device: weights, their pool and embedded texts, and how it gets by with less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from turbort.checkpoints.lora import Lora
from turbort.embed import Embedder, PromptCache
from turbort.experts import Experts, Setting
from turbort.guard.adapt import Adaptation
from turbort.guard.choose import second_of, watch_of
from turbort.guard.policy import Policy
from turbort.guard.profiler import OpProfile
from turbort.job import Event, Job, OnEvent, Result, passes, silent
from turbort.memory import Forecast, forecast, tiered_below
from turbort.memory_ladder import step_down
from turbort.models.files import locate
from turbort.models.spec import ModelSpec
from turbort.models.wan_dit import WanDit
from turbort.models.wan_vae import WanVae
from turbort.pixels import Pixels
from turbort.plan import Plan, check_calibrated
from turbort.planner import DTYPES, Target
from turbort.precision import PRECISIONS
from turbort.profile import Profile
from turbort.recovery import attempt
from turbort.registry import Registry
from turbort.report import Stopwatch

Made = TypeVar("Made")


class Held:
    """The parts of a model on one device, under one plan and one residency, which may be stepped down."""

    def __init__(
        self,
        spec: ModelSpec,
        profile: Profile,
        plan: Plan,
        registry: Registry,
        target: Target,
        root: Path,
        *,
        memory: Forecast | None = None,
        loras: Sequence[Lora] = (),
        cache: PromptCache | None = None,
        policy: Policy | None = None,
        profile_ops: bool = False,
    ) -> None:
        self.spec = spec
        self.profile = profile
        self.plan = plan
        self.registry = registry
        self.target = target
        self.backend = registry.backend(target.backend)
        self.device = torch.device(target.device.torch_name)
        self.watch = Stopwatch(self.backend, target.device)
        # Quantised codes need not be made from wide weights first; those are better where memory is plenty.
        below = tiered_below(profile, memory.budget if memory else None)
        self.files = locate(spec, root, quantised=below)
        self.memory = memory or forecast(plan, spec, profile)
        self.results: list[Result] = []
        self.steps_down: list[str] = []
        self._weights: dict[str, str] = {}
        self._more = False
        self._stage = "load"
        self._loaded = False
        self._ran: list[dict[str, Any]] = []
        self._exit = ExitStack()
        self.guard = watch_of(spec, profile, plan, registry, target, self.memory, policy)
        self._second = second_of(self.guard, plan)
        if self._second.plan is not None:
            made = forecast(plan, spec, profile, self.memory.residency, self._second)
            self.memory = replace(made, budget=self.memory.budget)
        strengths = self.guard.strengths
        self.adaptation = Adaptation(strengths, self.device) if strengths is not None and strengths.works else None
        self.ops = OpProfile(self.backend, target.device) if profile_ops else None
        how = self.memory.residency, self.guard, self.ops
        setting = Setting(spec, profile, plan, registry, self.backend, target.device, *how)
        self._experts = Experts(setting, self.files, loras)
        check_calibrated(plan, self._experts.digests)
        self._pixels = self._bound_pixels()
        text = PRECISIONS[profile.precision.text]
        self._embedder = Embedder(
            spec,
            self.files,
            device=self.device,
            dtype=getattr(torch, DTYPES.get(text.name, DTYPES[profile.precision.compute])),
            scheme=self.memory.residency.text_scheme or text.weight_scheme,
            cache=cache,
        )

    @property
    def roles(self) -> Sequence[str]:
        """The transformers of the model: `dit`, or its experts."""
        return self._experts.roles

    @property
    def vae(self) -> WanVae:
        """The bound video autoencoder."""
        return self._pixels.vae

    def model(self, role: str) -> WanDit:
        """The bound transformer of a role, brought onto the device if it is not there."""
        return self._experts.get(role).model

    def close(self) -> None:
        """Free the weights and the pool."""
        self._unload()
        self._exit.close()
        self.backend.empty_cache(self.target.device)

    def _unload(self) -> None:
        self._experts.close()
        self._ran += self._pixels.executed()
        self._pixels = self._bound_pixels()
        self._loaded = False

    def _bound_pixels(self) -> Pixels:
        vae = getattr(torch, DTYPES[self.profile.precision.vae])
        return Pixels(self.spec, self.plan, self.registry, self.files["vae"], device=self.device, dtype=vae)

    @contextmanager
    def _during(self, stage: str, counts: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Charge the block to `stage`, and remember that it was the last one begun."""
        self._stage = stage
        self._make_room(stage)
        with self.watch.stage(stage, counts):
            yield

    def _make_room(self, stage: str) -> None:
        """Give the memory of earlier stages' tensors back where this stage's would not fit beside it.

        An allocator does that by itself once an allocation fails, but by then small tensors of this stage may lie in it.
        """
        wanted, there = self.memory.stage(stage), self.backend.memory(self.target.device)
        if self.memory.budget is None or there.reserved is None or there.used is None:
            return
        if wanted.reserved + there.reserved - there.used - wanted.captured > self.memory.budget:
            self.backend.empty_cache(self.target.device)

    def _attempt(self, work: Callable[[], Made], again: Callable[[], Made], on_event: OnEvent) -> Made:
        return attempt(work, partial(self._step_down, on_event), again, lambda: self.steps_down)

    def _fill(self, jobs: Sequence[Job], on_event: OnEvent) -> None:
        if self.memory.residency.text == "first" and jobs:
            self._embed(jobs, on_event)
        self._load(on_event, encoder=self.spec.task == "i2v" or any(job.image for job in jobs))

    def _load(self, on_event: OnEvent, *, encoder: bool = False) -> None:
        if self._loaded and not self._pixels.missing(encoder=encoder):
            return
        # A VAE's file is small enough to be hashed whole, which takes as long as loading a small transformer.
        with self._during("load"), ThreadPoolExecutor(1, thread_name_prefix="turbort-digest") as other:
            digest = other.submit(lambda: self._pixels.digest)
            if not self._loaded:
                self._exit.close()
                pool: AbstractContextManager[Any] = self.backend.pool(self.target.device, self.profile.memory.strategy)
                self._exit.enter_context(pool)
                self._experts.load(self._used, on_event)
                self._weights.update(self._experts.digests)
            self._pixels.load(self._used, on_event, encoder=encoder)
            self._weights["vae"] = digest.result()
            if self.ops is not None:
                self.ops.attach(self._pixels.vae, "vae")
            self._loaded = True

    def _used(self) -> int | None:
        return self.backend.memory(self.target.device).used

    def _texts_of(self, jobs: Sequence[Job], on_event: OnEvent) -> dict[str, Tensor]:
        def work() -> dict[str, Tensor]:
            if self._loaded and self.memory.residency.text == "first" and self._embedder.missing(_all_texts(jobs)):
                self._unload()
                self.backend.empty_cache(self.target.device)
            texts = self._embed(jobs, on_event)
            self._load(on_event)
            return texts

        return self._attempt(work, work, on_event)

    @torch.inference_mode()
    def _embed(self, jobs: Sequence[Job], on_event: OnEvent = silent) -> dict[str, Tensor]:
        """Text embeddings [1, text_len, text_dim] by text; the encoder is freed afterwards, and its memory given back."""
        before = self._embedder.loads

        def encoded() -> bool:
            return self._embedder.loads > before

        with self._during("text", encoded):
            texts = self._embedder.embed(
                _all_texts(jobs), lambda done, wanted: on_event(Event("text", done, wanted, memory=self._used()))
            )
        if encoded():
            self.backend.empty_cache(self.target.device)
        return texts

    def _step_down(self, on_event: OnEvent) -> None:
        """Free what the failed stage left behind and take the next smaller residency; weights that must move are freed, too."""
        self.backend.empty_cache(self.target.device)
        failed, before = self.memory, self.memory.residency
        self.memory = step_down(self.plan, self.spec, self.profile, failed, self._stage, self._second)
        after = self.memory.residency
        for stage in self.memory.stages:
            if stage.name == self._stage or stage != failed.stage(stage.name):
                self.watch.forget(stage.name)
        said = f"out of memory in stage {self._stage}: going on with {after.describe(self.spec)}"
        self.steps_down.append(said)
        on_event(Event("plan", message=said))
        self._embedder.scheme = after.text_scheme or self._embedder.scheme
        moved = any(getattr(before, name) != getattr(after, name) for name in ("experts", "eager", "offload"))
        if moved or self._stage in ("load", "text"):
            self._unload()
            self._experts.settle(after)
            self.backend.empty_cache(self.target.device)


def _all_texts(jobs: Sequence[Job]) -> list[str]:
    return [text for job in jobs for text in _texts(job)]


def _texts(job: Job) -> tuple[str, ...]:
    return (job.prompt, job.negative_prompt or "") if passes(job) == 2 else (job.prompt,)
