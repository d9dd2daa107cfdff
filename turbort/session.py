"""Sessions: a bound plan with weights loaded. Call one with jobs to get videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbort.batching import chunk_of, most_jobs, padded
from turbort.bind import executed
from turbort.checkpoints.lora import Lora
from turbort.conditions import Conditions, conditions_of
from turbort.denoise import Denoiser
from turbort.embed import Embedder, PromptCache
from turbort.experts import Experts, Setting
from turbort.guard.choose import watch_of
from turbort.guard.monitor import recorded, report
from turbort.guard.policy import Policy
from turbort.guard.profiler import OpProfile
from turbort.job import Event, Job, OnEvent, Result, batches, check_image, passes, samples_per_step, silent
from turbort.memory import Forecast, budget_of, choose, forecast, tiered, tiered_below
from turbort.models.files import locate
from turbort.models.spec import ModelSpec
from turbort.models.wan_dit import WanDit
from turbort.models.wan_vae import WanVae
from turbort.output import decode, open_vae
from turbort.plan import Plan, check_calibrated
from turbort.planner import DTYPES, Target, find_target, make_plan
from turbort.profile import Profile
from turbort.registry import Registry
from turbort.report import Stopwatch, receipt


class Session:
    """A model bound to one plan on one device, with its weights in place. Two sessions in one process share no state.

    Open it with `Session.open`, use it as a context manager, call `generate` as often as needed, read `report()` at the end.
    """

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
        self._weights: dict[str, str] = {}
        self._more = False
        self._exit = ExitStack()
        self.guard = watch_of(spec, profile, plan, registry, target, self.memory, policy)
        self.memory = self.memory.plus(self.guard.weight_bytes)
        self.ops = OpProfile(self.backend, target.device) if profile_ops else None
        how = self.memory.residency, self.guard, self.ops
        setting = Setting(spec, profile, plan, registry, self.backend, target.device, *how)
        self._experts = Experts(setting, self.files, loras)
        check_calibrated(plan, self._experts.digests)
        self._embedder = Embedder.of(spec, self.files, profile, self.memory.residency, self.device, cache)
        self._vae: WanVae

    @classmethod
    def open(
        cls,
        spec: ModelSpec,
        profile: Profile,
        *,
        registry: Registry | None = None,
        plan: Plan | None = None,
        on: str | None = None,
        jobs: Sequence[Job] = (),
        root: Path | None = None,
        on_event: OnEvent = silent,
        memory_budget: int | None = None,
        loras: Sequence[Lora] = (),
        cache: PromptCache | None = None,
        policy: Policy | None = None,
        profile_ops: bool = False,
    ) -> Session:
        """Plan (unless `plan` is given), check that all files are there, and load the weights.

        `jobs` tell the planner the size and the batch; `root` is the folder of the model's files (default: where
        `spec` says). `memory_budget` in bytes simulates a smaller device; `loras` are added to the transformer's weights;
        `cache` keeps prompts' embeddings on disk; `policy` replays recorded promotions instead of monitoring; `profile_ops`
        times every call site. Raises UnavailableError, NoKernelError, PlanError or InputError before any video is begun.
        """
        registry = registry or Registry()
        target = find_target(profile, registry, on or (plan.header["backend"] if plan else None))
        budget = budget_of(target.device, profile, memory_budget)
        profile = tiered(profile, budget)
        first = (jobs[0] if jobs else Job("")).resolved(spec)
        on_event(Event("plan"))
        if plan is None:
            size = (first.width or 0, first.height or 0)
            batch = samples_per_step(profile, len(jobs), first)
            plan = make_plan(spec, profile, registry, target=target, size=size, frames=first.frames, batch=batch)
        memory = choose(plan, spec, profile, budget)
        root = root or spec.root or Path.cwd()
        more: dict[str, Any] = {"loras": loras, "cache": cache, "policy": policy, "profile_ops": profile_ops}
        session = cls(spec, profile, plan, registry, target, root, memory=memory, **more)
        if jobs and memory.residency.text == "first":
            session._embed([job.resolved(spec) for job in jobs], on_event)
        session._load(on_event)
        return session

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights and the pool."""
        self._exit.close()
        self._experts.close()
        self.__dict__.pop("_vae", None)
        self.backend.empty_cache(self.target.device)

    @property
    def roles(self) -> Sequence[str]:
        """The transformers of the model: `dit`, or its experts."""
        return self._experts.roles

    def model(self, role: str) -> WanDit:
        """The bound transformer of a role, brought onto the device if it is not there."""
        return self._experts.get(role).model

    def _load(self, on_event: OnEvent) -> None:
        with self.watch.stage("load"):
            pool: AbstractContextManager[Any] = self.backend.pool(self.target.device, self.profile.memory.strategy)
            self._exit.enter_context(pool)
            self._experts.load(self._used, on_event)
            self._weights.update(self._experts.digests)
            self._vae, self._weights["vae"] = open_vae(
                self.spec,
                self.profile,
                self.plan,
                self.registry,
                self.files["vae"],
                self.device,
                lambda done, total: on_event(Event("load", done, total, memory=self._used(), message="vae")),
            )
            if self.ops is not None:
                self.ops.attach(self._vae, "vae")

    def _used(self) -> int | None:
        return self.backend.memory(self.target.device).used

    def generate(self, jobs: Sequence[Job], on_event: OnEvent = silent) -> list[Result]:
        """Make the videos of `jobs`, in order, batched as the profile and the memory allow.

        A job gives the same video alone or in a batch, as far as the kernels are independent of the batch size.
        Interrupting between steps leaves finished videos in place and no half-written file. Should the device run out of
        memory all the same, the group is tried once more, one job at a time and one latent frame at a time, and an event says so.
        """
        resolved = [job.resolved(self.spec) for job in jobs]
        for job in resolved:
            check_image(job, self.spec)
        texts = self._embed(resolved, on_event)
        made: list[Result] = []
        groups = list(batches(resolved, most_jobs(resolved, self.profile, self.plan, self.memory)))
        for group in groups:
            self._more = group is not groups[-1]
            made.extend(self._attempt(group, texts, on_event))
        self.results.extend(made)
        return made

    def _attempt(self, group: Sequence[tuple[int, Job]], texts: dict[str, Tensor], on_event: OnEvent) -> list[Result]:
        done: list[Result] = []
        try:
            for result in self._make(group, texts, on_event):
                done.append(result)  # noqa: PERF402 - what is finished must survive a failure of the next
            return done
        except torch.OutOfMemoryError:
            pass  # handled outside, where the failed call's tensors are no longer held by the exception
        self.backend.empty_cache(self.target.device)
        self.memory = replace(self.memory, residency=replace(self.memory.residency, chunk=1, batch=1))
        on_event(Event("plan", message="out of memory: going on with one job and one latent frame at a time"))
        for number, job in group[len(done) :]:
            done.extend(self._make([(number, job)], texts, on_event))
        return done

    @torch.inference_mode()
    def _embed(self, jobs: Sequence[Job], on_event: OnEvent = silent) -> dict[str, Tensor]:
        """Text embeddings [1, text_len, text_dim] by text; the encoder is freed afterwards."""
        with self.watch.stage("text"):
            return self._embedder.embed(
                [text for job in jobs for text in _texts(job)],
                lambda done, wanted: on_event(Event("text", done, wanted, memory=self._used())),
            )

    @torch.inference_mode()
    def _make(self, group: Sequence[tuple[int, Job]], texts: dict[str, Tensor], on_event: OnEvent) -> Iterator[Result]:
        before = dict(self.watch.seconds)
        latents = self._sample(group, texts, on_event)
        if self._more:
            self._experts.prefetch(self._experts.roles[0])
        for row, (number, job) in enumerate(group):

            def told(done: int, total: int, number: int = number) -> None:
                on_event(Event("decode", done, total, number, self._used()))

            path, frames = self.decode(latents[row : row + 1], job, told)
            on_event(Event("write", 1, 1, number, self._used(), message=str(path or "")))
            seconds = {stage: value - before.get(stage, 0.0) for stage, value in self.watch.seconds.items()}
            yield Result(job, path, {stage: value for stage, value in seconds.items() if value > 0}, frames)

    @torch.inference_mode()
    def decode(self, latents: Tensor, job: Job, told: Callable[[int, int], None] = lambda *_: None) -> tuple[Path | None, Any]:
        """The file of a resolved job made from its latents [1, z, T, h, w], or its frames where it names no file."""
        latents, chunk = latents.to(getattr(torch, DTYPES[self.profile.precision.vae])), chunk_of(job, self.plan, self.memory)
        with self.watch.stage("decode"):
            return decode(self._vae, latents, job, chunk, told, tile=self.memory.residency.tile)

    def _sample(self, group: Sequence[tuple[int, Job]], texts: dict[str, Tensor], on_event: OnEvent) -> Tensor:
        """Latents [B, C, T, h, w] in float32 for a group of jobs of one shape."""
        first = group[0][1]
        jobs = [job for _, job in group]
        jobs += [jobs[-1]] * (padded(len(jobs), first, self.profile, self.plan, self.memory) - len(jobs))
        denoiser = self.denoiser(jobs, texts, on_event)
        with self.watch.stage("sample"):
            state = None
            for state in denoiser.steps(first, [job.seed for job in jobs]):
                on_event(Event("sample", state.index + 1, state.total, group[0][0], self._used()))
        assert state is not None  # a sampler has at least one step
        return state.x[: len(group)]

    def denoiser(self, jobs: Sequence[Job], texts: Mapping[str, Tensor], on_event: OnEvent = silent) -> Denoiser:
        """What denoises these jobs, which are resolved and of one shape; `texts` is what `_embed` returned for them."""
        compute = getattr(torch, DTYPES[self.profile.precision.compute])
        conditions = self._conditions(jobs, compute, on_event)

        def gathered(prompts: Sequence[str]) -> Tensor:
            return torch.cat([texts[prompt] for prompt in prompts]).to(self.device, compute)

        return Denoiser(
            self.spec,
            self._experts,
            gathered([job.prompt for job in jobs]),
            gathered([job.negative_prompt or "" for job in jobs]) if passes(jobs[0]) == 2 else None,
            conditions,
            device=self.device,
            compute=compute,
            int8_cache=self.profile.memory.activation_cache.startswith("int8"),
            together=2 * len(jobs) <= self.profile.batch.most and 2 * len(jobs) <= max(2, self.memory.residency.batch),
        )

    def _conditions(self, jobs: Sequence[Job], compute: torch.dtype, on_event: OnEvent) -> Conditions:
        if jobs[0].image is None:
            return Conditions()
        on_event(Event("image", 0, 1, memory=self._used()))
        with self.watch.stage("image"):
            vae = getattr(torch, DTYPES[self.profile.precision.vae])
            found = conditions_of(jobs, self.spec, self._vae, self.files, device=self.device, dtype=vae, compute=compute)
        on_event(Event("image", 1, 1, memory=self._used()))
        return found

    def report(self) -> dict[str, Any]:
        """The receipt of everything this session has made."""
        ran = self._experts.executed() + executed(self._vae, "vae")
        document = receipt(self.plan, self.target.device, self.watch, ran, self.results, self._weights)
        document |= {"memory": self.memory.as_data(), "expert_swaps": self._experts.swaps}
        document |= {"monitor": report(self.guard, list(self._experts.monitors.values()))}
        return document if self.ops is None else document | {"ops": self.ops.as_data(self.profile.monitor.quant_overhead)}

    def policy(self) -> Policy:
        """What the monitors promoted so far, to be replayed without them."""
        return recorded(self.spec.name, self.plan.digest, list(self._experts.monitors.values()))


def _texts(job: Job) -> tuple[str, ...]:
    return (job.prompt, job.negative_prompt or "") if passes(job) == 2 else (job.prompt,)
