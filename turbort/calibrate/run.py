"""`calibrate`: sample videos with the unquantised model while every call site is watched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from turbort.calibrate.model import LINEARS, Watched
from turbort.calibration import Calibration, Link
from turbort.conditions import Conditions
from turbort.denoise import Denoiser
from turbort.embed import Embedder, PromptCache
from turbort.errors import InputError
from turbort.experts import Setting
from turbort.io import atomic_bytes
from turbort.job import Event, Job, OnEvent, passes, silent
from turbort.looks import Look, Video
from turbort.memory import Residency
from turbort.models.files import locate
from turbort.models.sampler import Step
from turbort.models.signal import difference, measure
from turbort.models.spec import ModelSpec
from turbort.plan import Plan
from turbort.planner import DTYPES
from turbort.profile import Profile
from turbort.registry import Registry
from turbort.session import Session
from turbort.target import Target, with_values

LINKS = ("w8a8", "w4a8")
"""Precisions at which whole videos are made, to tie predicted errors to pixels."""


@dataclass(frozen=True)
class Subject:
    """What is calibrated: a model with its files, under a profile, on a device."""

    spec: ModelSpec
    profile: Profile
    registry: Registry
    target: Target
    root: Path
    cache: PromptCache | None = None


def calibrate(
    subject: Subject,
    jobs: Sequence[Job],
    *,
    linears: tuple[str, ...] = LINEARS,
    links: Sequence[str] = LINKS,
    moments: Path | None = None,
    every_link: bool = False,
    on_event: OnEvent = silent,
) -> Calibration:
    """Watch the sampling of `jobs` (of one shape) and return what every call site of the transformer saw and would suffer.

    One forward and one backward pass per step and job, in the profile's compute dtype, plus each site once more at every
    precision. For each precision in `links` the first job's video is made too (with `every_link` every job's), and compared with
    the unquantised one. How each video looked at its steps is kept, too, for the strength levels of `turbort.guard.levels`.
    `moments` names a safetensors file for E[x x^T] of every block linear, which `turbort prune` reads; a K x K matrix each.
    Raises InputError for jobs of several shapes or with pictures.
    """
    resolved = [job.resolved(subject.spec) for job in jobs]
    if len({job.shape for job in resolved}) != 1:
        raise InputError("the prompts ask for several sizes or step counts", fix="calibrate one shape at a time, then --merge")
    if any(job.image is not None for job in resolved) or subject.spec.task == "i2v":
        raise InputError(f"calibration starts from text alone, {subject.spec.name} from pictures", fix="choose a t2v model")
    device = torch.device(with_values(subject.target).device.torch_name)
    spec, profile = subject.spec, subject.profile
    files = locate(spec, subject.root)
    compute = getattr(torch, DTYPES[profile.precision.compute])
    embedder = Embedder(spec, files, device=device, dtype=compute, cache=subject.cache)
    wanted = [text for job in resolved for text in (job.prompt, *([job.negative_prompt or ""] if passes(job) == 2 else []))]
    texts = embedder.embed(wanted, lambda done, total: on_event(Event("text", done, total)))
    backend = subject.registry.backend(subject.target.backend)
    header = {"model": spec.name}
    setting = Setting(spec, profile, Plan(header, ()), subject.registry, backend, subject.target.device, Residency())
    watched = Watched(setting, files, linears=linears, moments=moments is not None)
    watched.load(lambda: backend.memory(subject.target.device).used, on_event)
    videos = []
    for number, job in enumerate(resolved):
        watched.watch.step = 0
        looks: list[Look] = []
        denoiser = Denoiser(
            spec,
            watched,
            texts[job.prompt].to(device, compute),
            texts[job.negative_prompt or ""].to(device, compute) if passes(job) == 2 else None,
            Conditions(),
            device=device,
            compute=compute,
            together=False,
        )
        for state in denoiser.steps(job, [job.seed]):
            watched.watch.step = state.index + 1
            looks.append(_look(state, watched.watch.felt, passes(job)))
            watched.watch.felt.clear()
            on_event(Event("sample", state.index + 1, state.total, number))
        videos.append(Video(tuple(looks)))
    first = resolved[0]
    made = Calibration(
        {
            "model": spec.name,
            "checkpoints": dict(watched.digests),
            "compute": profile.precision.compute,
            "attention": profile.attention.model_dump(mode="json"),
            "size": [first.width, first.height],
            "frames": first.frames,
            "steps": first.steps,
        },
        watched.records(),
        tuple((job.prompt, job.seed) for job in resolved),
    )
    if moments is not None:
        if spec.experts:
            raise InputError(f"{spec.name} has two experts, and moments are kept for one", fix="leave out --moments")
        found = {name: value.contiguous() for name, value in watched.moments().items()}
        atomic_bytes(moments, save(found, {"checkpoint": watched.digests[watched.roles[0]]}))
    watched.close()
    linked = resolved if every_link else resolved[:1]
    exact = list(_videos(subject, profile.precision.compute, linked, on_event)) if links else []
    errors = {precision: _errors(_videos(subject, precision, linked, on_event), exact) for precision in links}
    made_at = [Link(name, predicted(made, name), sum(mse for mse, _ in row) / len(row), len(row)) for name, row in errors.items()]
    for number in range(len(linked) if links else 0):
        mse, moved = ({name: row[number][part] for name, row in errors.items()} for part in (0, 1))
        videos[number] = replace(videos[number], mse=mse, first=moved)
    return replace(made, links=tuple(made_at), videos=tuple(videos))


def _look(state: Step, felt: Mapping[str, float], calls: int) -> Look:
    """A step as calibration keeps it; `felt` is over all model calls of the step."""
    gradient, motion = measure(state.clean)[0].tolist()
    return Look(state.t, gradient, motion, {name: value / calls for name, value in felt.items()})


Made = tuple[NDArray[numpy.uint8], Tensor]
"""Frames of a video, and the clean latents that its first step predicted."""


def _errors(videos: Iterable[Made], exact: Sequence[Made]) -> list[tuple[float, float]]:
    """Per video the mean squared error of pixels in [0, 1], and how far the first step's clean latents moved."""
    return [
        (float(numpy.square((mine.astype(numpy.float32) - theirs) / 255.0).mean()), float(difference(truth, first)))
        for (mine, first), (theirs, truth) in zip(videos, exact, strict=True)
    ]


def predicted(made: Calibration, precision: str) -> float:
    """The relative error of the model's output when every linear that can runs at `precision`: the sum over sites."""
    return sum(site.felt(precision) for site in made.sites.values() if precision in site.precisions)


def _videos(subject: Subject, linear: str, jobs: Sequence[Job], on_event: OnEvent) -> Iterator[Made]:
    """Each job with all block linears at one precision and attention in the compute dtype, by reference kernels."""
    words = subject.profile.precision
    same = words.linear.model_copy(update={"max": linear, "min": linear})
    changed = words.model_copy(update={"linear": same, "attention": words.compute, "overrides": {}})
    profile = subject.profile.model_copy(update={"precision": changed, "fallback": "allow"})
    plain = [replace(job, out=None) for job in jobs]
    with Session.open(
        subject.spec, profile, registry=subject.registry, on=subject.target, jobs=plain, root=subject.root,
        cache=subject.cache,
    ) as session:  # fmt: skip
        for job in plain:
            with torch.inference_mode():
                states = list(session.denoiser([job], session._embed([job])).steps(job, [job.seed]))
                _, frames = session.decode(states[-1].x, job)
            on_event(Event("sample", len(states), len(states)))
            yield numpy.asarray(frames), states[0].clean
