"""Sessions: a bound plan with weights loaded. Call one with jobs to get videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbort.bind import Binder, executed
from turbort.checkpoints import Checkpoint, open_checkpoint, stream
from turbort.io import frames_to_uint8, open_writer
from turbort.job import Event, Job, OnEvent, Result, batches, passes, samples_per_step, silent
from turbort.models.dit_layers import CrossKV
from turbort.models.files import locate
from turbort.models.guidance import guided
from turbort.models.sampler import Noise, build_sampler
from turbort.models.sites import build_dit
from turbort.models.spec import ModelSpec
from turbort.models.text import TextEncoder
from turbort.models.vae import build_vae
from turbort.models.wan_dit import WanDit
from turbort.models.wan_vae import WanVae
from turbort.plan import Plan
from turbort.planner import DTYPES, Target, find_target, make_plan
from turbort.profile import Profile
from turbort.registry import Registry
from turbort.report import Stopwatch, receipt

DECODE_PIXELS = 2**22  # per chunk; larger chunks reread fewer cached frames, smaller ones need less memory


class Session:
    """A model bound to one plan on one device, with its weights in place.

    Open it with `Session.open`, use it as a context manager, call `generate` as often as needed, and read
    `report()` at the end. A session owns its memory pool; two sessions in one process do not share state.
    """

    def __init__(self, spec: ModelSpec, profile: Profile, plan: Plan, registry: Registry, target: Target, root: Path) -> None:
        self.spec = spec
        self.profile = profile
        self.plan = plan
        self.registry = registry
        self.target = target
        self.backend = registry.backend(target.backend)
        self.device = torch.device(target.device.torch_name)
        self.watch = Stopwatch(self.backend, target.device)
        self.files = locate(spec, root)
        self.results: list[Result] = []
        self._weights: dict[str, str] = {}
        self._exit = ExitStack()
        self._dit: WanDit
        self._vae: WanVae
        self._step: Callable[..., Tensor]

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
    ) -> Session:
        """Plan (unless `plan` is given), check that all files are there, and load the weights.

        `jobs` tell the planner the size and the batch; `root` is the folder of the model's files (default: where
        `spec` says). Raises UnavailableError, NoKernelError, PlanError or CheckpointError before any video is begun.
        """
        registry = registry or Registry()
        target = find_target(profile, registry, on or (plan.header["backend"] if plan else None))
        first = (jobs[0] if jobs else Job("")).resolved(spec)
        on_event(Event("plan"))
        if plan is None:
            size = (first.width or 0, first.height or 0)
            batch = samples_per_step(profile, len(jobs), first)
            plan = make_plan(spec, profile, registry, target=target, size=size, frames=first.frames, batch=batch)
        session = cls(spec, profile, plan, registry, target, root or spec.root or Path.cwd())
        session._load(on_event)
        return session

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights and the pool."""
        self._exit.close()
        self.__dict__.pop("_dit", None)
        self.__dict__.pop("_vae", None)
        self.__dict__.pop("_step", None)
        self.backend.empty_cache(self.target.device)

    def _load(self, on_event: OnEvent) -> None:
        precision = self.profile.precision
        with self.watch.stage("load"):
            pool: AbstractContextManager[Any] = self.backend.pool(self.target.device, self.profile.memory.strategy)
            self._exit.enter_context(pool)
            self._dit = build_dit(self.spec, self.profile.attention)
            self._fill(self._dit, "dit", open_checkpoint(self.files["dit"]), DTYPES[precision.compute], on_event)
            with torch.device("meta"):
                self._vae = build_vae(self.spec.vae).requires_grad_(False).eval()
            self._fill(self._vae, "vae", open_checkpoint(self.files["vae"]), DTYPES[precision.vae], on_event)
            self._step = self.backend.compile_step(self._dit, self.target.device)

    def _fill(self, model: nn.Module, stage: str, checkpoint: Checkpoint, dtype: str, on_event: OnEvent) -> None:
        """Bind a model and stream its weights in, one tensor at a time."""
        binder = Binder(model, self.plan, stage, self.registry, device=self.device, dtype=getattr(torch, dtype))
        expected = binder.expected()
        for number, (name, value) in enumerate(stream(checkpoint, expected)):
            binder.place(name, value)
            on_event(Event("load", number + 1, len(expected), memory=self._used(), message=stage))
        self._weights[stage] = checkpoint.digest

    def _used(self) -> int | None:
        return self.backend.memory(self.target.device).used

    def generate(self, jobs: Sequence[Job], on_event: OnEvent = silent) -> list[Result]:
        """Make the videos of `jobs`, in order, batched as the profile says.

        A job gives the same video alone or in a batch, as far as the kernels are independent of the batch size.
        Interrupting between steps leaves finished videos in place and no half-written file.
        """
        resolved = [job.resolved(self.spec) for job in jobs]
        texts = self._embed(resolved, on_event)
        made: list[Result] = []
        most = max(1, samples_per_step(self.profile, len(jobs), resolved[0]) // passes(resolved[0])) if resolved else 1
        for group in batches(resolved, most):
            made.extend(self._make(group, texts, on_event))
        self.results.extend(made)
        return made

    @torch.inference_mode()
    def _embed(self, jobs: Sequence[Job], on_event: OnEvent) -> dict[str, Tensor]:
        """Text embeddings [1, text_len, text_dim] by text; the encoder is freed afterwards."""
        wanted = list(dict.fromkeys(text for job in jobs for text in _texts(job)))
        on_event(Event("text", 0, len(wanted), memory=self._used()))
        with self.watch.stage("text"):
            encoder = TextEncoder.load(self.spec, self.files, device=self.device, dtype=getattr(torch, self._text_dtype()))
            found = {}
            for number, text in enumerate(wanted):
                found[text] = encoder.encode([text])
                on_event(Event("text", number + 1, len(wanted), memory=self._used()))
            del encoder
        return found

    def _text_dtype(self) -> str:
        return DTYPES.get(self.profile.precision.text, DTYPES[self.profile.precision.compute])

    @torch.inference_mode()
    def _make(self, group: Sequence[tuple[int, Job]], texts: dict[str, Tensor], on_event: OnEvent) -> Iterator[Result]:
        before = dict(self.watch.seconds)
        latents = self._sample(group, texts, on_event)
        for row, (number, job) in enumerate(group):
            path, frames = self._decode(latents[row : row + 1], number, job, on_event)
            on_event(Event("write", 1, 1, number, self._used(), message=str(path or "")))
            seconds = {stage: value - before.get(stage, 0.0) for stage, value in self.watch.seconds.items()}
            yield Result(job, path, {stage: value for stage, value in seconds.items() if value > 0}, frames)

    def _sample(self, group: Sequence[tuple[int, Job]], texts: dict[str, Tensor], on_event: OnEvent) -> Tensor:
        """Latents [B, C, T, h, w] in float32 for a group of jobs of one shape."""
        first = group[0][1]
        jobs = [job for _, job in group]
        jobs += [jobs[-1]] * (self._padded(len(jobs), first) - len(jobs))
        compute = getattr(torch, DTYPES[self.profile.precision.compute])
        shape = self.spec.latent_shape(first.width or 0, first.height or 0, first.frames or 0)
        with self.watch.stage("sample"):
            text = self._dit.encode_text(torch.cat([texts[job.prompt] for job in jobs]).to(self.device, compute))
            negative = None
            if passes(first) == 2:
                negative = self._dit.encode_text(
                    torch.cat([texts[job.negative_prompt or ""] for job in jobs]).to(self.device, compute)
                )

            def predict(x: Tensor, t: float, context: Sequence[CrossKV]) -> Tensor:
                return self._step(x.to(compute), torch.full((len(x),), t, device=self.device), context)

            velocity = guided(predict, text, negative, first.guidance or 1.0, together=2 * len(jobs) <= self.profile.batch.most)
            sampler = build_sampler(self.spec.sampler, replace(self.spec.preset, steps=first.steps or self.spec.preset.steps))
            state = None
            for state in sampler.steps(velocity, Noise([job.seed for job in jobs], shape, self.device)):
                on_event(Event("sample", state.index + 1, state.total, group[0][0], self._used()))
        assert state is not None  # a sampler has at least one step
        return state.x[: len(group)]

    def _padded(self, count: int, job: Job) -> int:
        """A fixed batch is filled up by repeating its last job, so that one compiled shape serves all."""
        batch = self.profile.batch
        return max(count, batch.most // passes(job)) if batch.mode == "fixed" else count

    def _decode(self, latents: Tensor, number: int, job: Job, on_event: OnEvent) -> tuple[Path | None, Any]:
        """Decode one job's latents, streaming frames into its file (or collecting them when it names none)."""
        dtype = getattr(torch, DTYPES[self.profile.precision.vae])
        chunk = decode_chunk(self.spec, job)
        total = -(-latents.shape[2] // chunk)
        kept = []
        with ExitStack() as stack:
            writer = None
            if job.out is not None:
                size = (job.width or 0, job.height or 0)
                writer = stack.enter_context(open_writer(job.out, *size, job.fps or 1, frames_hint=job.frames))
            with self.watch.stage("decode"):
                for done, pixels in enumerate(self._vae.decode_stream(latents.to(dtype), chunk=chunk), start=1):
                    frames = frames_to_uint8(pixels[0])
                    on_event(Event("decode", done, total, number, self._used()))
                    if writer is None:
                        kept.append(frames)
                    else:
                        writer.write(frames)
        if writer is not None:
            return writer.path, None
        import numpy

        return None, numpy.concatenate(kept)

    def report(self) -> dict[str, Any]:
        """The receipt of everything this session has made."""
        ran = executed(self._dit, "dit") + executed(self._vae, "vae")
        return receipt(self.plan, self.target.device, self.watch, ran, self.results, self._weights)


def _texts(job: Job) -> tuple[str, ...]:
    return (job.prompt, job.negative_prompt or "") if passes(job) == 2 else (job.prompt,)


def decode_chunk(spec: ModelSpec, job: Job) -> int:
    """Latent frames decoded at once: as many as `DECODE_PIXELS` allow, so that memory does not grow with length."""
    return max(1, DECODE_PIXELS // (spec.vae.stride[0] * (job.width or 1) * (job.height or 1)))
