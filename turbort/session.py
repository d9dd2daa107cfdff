"""Sessions: a bound plan with weights loaded. Call one with jobs to get videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turbort.batching import Batching, Numbered
from turbort.checkpoints.lora import Lora
from turbort.conditions import Conditions, conditions_of
from turbort.denoise import Denoiser
from turbort.embed import PromptCache
from turbort.experts import merged
from turbort.guard.adapt import report as adaptive_report
from turbort.guard.levels import make_levelled_plan
from turbort.guard.monitor import recorded, report
from turbort.guard.policy import Policy
from turbort.held import Held
from turbort.job import Event, Job, OnEvent, Result, check_image, passes, samples_per_step, silent
from turbort.memory import Forecast, budget_of, tiered
from turbort.memory_ladder import choose
from turbort.models.spec import ModelSpec
from turbort.output import decode
from turbort.plan import Plan
from turbort.planner import DTYPES, find_target
from turbort.profile import Profile
from turbort.registry import Registry
from turbort.report import receipt
from turbort.target import Target, with_values


class Session(Held):
    """A model bound to one plan on one device, with its weights in place.

    Open it with `Session.open`, use it as a context manager, call `generate` as often as needed, and read
    `report()` at the end. A session owns its memory pool; two sessions in one process do not share state.
    """

    @classmethod
    def open(
        cls,
        spec: ModelSpec,
        profile: Profile,
        *,
        registry: Registry | None = None,
        plan: Plan | None = None,
        on: str | Target | None = None,
        jobs: Sequence[Job] = (),
        root: Path | None = None,
        on_event: OnEvent = silent,
        memory_budget: int | None = None,
        loras: Sequence[Lora] = (),
        cache: PromptCache | None = None,
        memory: Forecast | None = None,
        policy: Policy | None = None,
        profile_ops: bool = False,
    ) -> Session:
        """Plan (unless `plan` is given), check that all files are there, and load the weights.

        `on` names a backend and perhaps the number of its device (`cuda:1`), or is the target itself.
        `jobs` tell the planner the size and the batch; `root` is the folder of the model's files (default: where
        `spec` says). `memory_budget` in bytes simulates a smaller device; `loras` are added to the transformer's weights;
        `cache` keeps prompts' embeddings on disk; `memory` is the residency to use (default: the fastest that fits);
        `policy` replays recorded promotions instead of monitoring; `profile_ops` times every call site.
        Raises UnavailableError, NoKernelError, PlanError or InputError before any video is begun.
        """
        registry = registry or Registry()
        asked = on or (plan.header["backend"] if plan else None)
        target = with_values(asked if isinstance(asked, Target) else find_target(profile, registry, asked))
        registry.backend(target.backend).start(target.device)
        budget = budget_of(target.device, profile, memory_budget)
        profile = tiered(profile, budget)
        first = (jobs[0] if jobs else Job("")).resolved(spec)
        on_event(Event("plan"))
        if plan is None:
            size = (first.width or 0, first.height or 0)
            batch = samples_per_step(profile, len(jobs), first)
            plan = make_levelled_plan(
                spec,
                profile,
                registry,
                target=target,
                size=size,
                frames=first.frames,
                batch=batch,
                image=first.image is not None,
            )
        memory = memory or choose(plan, spec, profile, budget)
        more: dict[str, Any] = {"loras": loras, "cache": cache, "policy": policy, "profile_ops": profile_ops}
        session = cls(spec, profile, plan, registry, target, root or spec.root or Path.cwd(), memory=memory, **more)
        fill = partial(session._fill, [job.resolved(spec) for job in jobs], on_event)
        try:
            session._attempt(fill, fill, on_event)
        except BaseException:
            session.close()
            raise
        return session

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generate(self, jobs: Sequence[Job], on_event: OnEvent = silent) -> list[Result]:
        """Make the videos of `jobs`, in order, batched as the profile and the memory allow.

        A job gives the same video alone or in a batch, as far as the kernels are independent of the batch size.
        Interrupting between steps leaves finished videos in place and no half-written file. Should the device run out of
        memory all the same, what failed is freed and tried once more with the next smaller residency, and an event and the
        report say so; UnavailableError when that fails, too.
        """
        resolved = [job.resolved(self.spec) for job in jobs]
        for job in resolved:
            check_image(job, self.spec)
        texts = self._texts_of(resolved, on_event)
        made: list[Result] = []
        groups = self._batching.groups(list(enumerate(resolved)))
        for group in groups:
            self._more = group is not groups[-1]
            made.extend(self._whole(group, texts, on_event))
        self.results.extend(made)
        return made

    @property
    def _batching(self) -> Batching:
        return Batching(self.profile, int(self.plan.header["batch"]), self.memory.residency.batch)

    def _whole(self, group: Sequence[Numbered], texts: dict[str, Tensor], on_event: OnEvent) -> list[Result]:
        done: list[Result] = []

        def work() -> None:
            for result in self._make(group, texts, on_event):
                done.append(result)  # noqa: PERF402 - what is finished must survive a failure of the next

        def again() -> None:
            self._load(on_event)
            for part in self._batching.groups(group[len(done) :]):
                done.extend(self._make(part, texts, on_event))

        self._attempt(work, again, on_event)
        return done

    @torch.inference_mode()
    def _make(self, group: Sequence[Numbered], texts: dict[str, Tensor], on_event: OnEvent) -> Iterator[Result]:
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
        with self._during("decode"):
            mine = self._pixels.latents(latents)
            return decode(self._pixels.vae, mine, job, self._chunk(job), told, tile=self.memory.residency.tile)

    def _chunk(self, job: Job) -> int:
        """Latent frames decoded at once: as forecast for the plan's size, fewer for a larger job."""
        width, height = self.plan.header["size"]
        pixels = (job.width or 1) * (job.height or 1)
        return max(1, self.memory.residency.chunk * int(width * height) // pixels)

    def _sample(self, group: Sequence[Numbered], texts: dict[str, Tensor], on_event: OnEvent) -> Tensor:
        """Latents [B, C, T, h, w] in float32 for a group of jobs of one shape."""
        first = group[0][1]
        jobs = self._batching.padded([job for _, job in group])
        denoiser = self.denoiser(jobs, texts, on_event)
        with self._during("sample"):
            state = None
            for state in denoiser.steps(first, [job.seed for job in jobs]):
                on_event(Event("sample", state.index + 1, state.total, group[0][0], self._used()))
        assert state is not None  # a sampler has at least one step
        return state.x[: len(group)]

    def denoiser(self, jobs: Sequence[Job], texts: Mapping[str, Tensor], on_event: OnEvent = silent) -> Denoiser:
        """What denoises these jobs, which are resolved and of one shape; `texts` is what `_embed` returned for them."""
        compute = getattr(torch, DTYPES[self.profile.precision.compute])
        conditions = self._conditions(jobs, compute, on_event)

        if self.adaptation is not None:
            self.adaptation.begin([job.prompt for job in jobs])

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
            together=self._batching.together(jobs),
            adaptation=self.adaptation,
        )

    def _conditions(self, jobs: Sequence[Job], compute: torch.dtype, on_event: OnEvent) -> Conditions:
        if jobs[0].image is None:
            return Conditions()
        on_event(Event("image", 0, 1, memory=self._used()))
        self._load(on_event, encoder=True)
        with self._during("image"):
            vae = self._pixels
            found = conditions_of(jobs, self.spec, vae.vae, self.files, device=self.device, dtype=vae.dtype, compute=compute)
        on_event(Event("image", 1, 1, memory=self._used()))
        return found

    def report(self) -> dict[str, Any]:
        """The receipt of everything this session has made."""
        ran = merged(self._experts.executed() + self._ran + self._pixels.executed())
        document = receipt(self.plan, self.target.device, self.watch, ran, self.results, self._weights)
        memory = {**self.memory.as_data(), "steps_down": list(self.steps_down)}
        document |= {"memory": memory, "expert_swaps": self._experts.swaps}
        document |= {"monitor": report(self.guard, list(self._experts.monitors.values()))}
        document |= {"adaptive": adaptive_report(self.guard.strengths, self.adaptation)}
        return document if self.ops is None else document | {"ops": self.ops.as_data(self.profile.monitor.quant_overhead)}

    def policy(self) -> Policy:
        """What the monitors promoted so far, to be replayed without them."""
        return recorded(self.spec.name, self.plan.digest, list(self._experts.monitors.values()))
