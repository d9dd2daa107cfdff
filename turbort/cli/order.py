"""The options of `turbort run`, turned into checked jobs before anything heavy begins."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbort.errors import InputError, PlanError

if TYPE_CHECKING:
    from turbort.job import Job
    from turbort.models.spec import ModelSpec
    from turbort.plan import Plan
    from turbort.profile import Profile

DEFAULT_OUT = Path("out.mp4")


@dataclass(frozen=True)
class Asked:
    """What the user typed; None where nothing was typed."""

    prompt: str | None = None
    prompts: Path | None = None
    negative_prompt: str | None = None
    seed: int = 0
    size: str | None = None
    frames: int | None = None
    fps: int | None = None
    steps: int | None = None
    guidance: float | None = None
    out: Path = DEFAULT_OUT
    report: Path | None = None
    image: Path | None = None

    @property
    def report_path(self) -> Path:
        """`out.report.json` beside `out.mp4`, unless named."""
        return self.report or self.out.with_name(f"{self.out.stem}.report.json")

    @property
    def ledger_path(self) -> Path:
        """`out.jobs.jsonl` beside `out.mp4`: which job made which file."""
        return self.out.with_name(f"{self.out.stem}.jobs.jsonl")


def jobs_of(asked: Asked, spec: ModelSpec) -> list[Job]:
    """Every job of a run, checked, each with its file. Raises InputError."""
    from turbort.cli.outputs import check_outputs, number_outputs
    from turbort.job import Job
    from turbort.request import check_job, parse_size, read_prompts

    if not asked.out.name:
        raise InputError(f"--out {asked.out} names no file", fix="give a file name, such as --out out.mp4")
    if (asked.prompt is None) == (asked.prompts is None):
        both = asked.prompt is not None
        raise InputError(
            "--prompt and --prompts exclude each other" if both else "there is nothing to show: no prompt was given",
            fix="give only one of them" if both else 'add --prompt "a red circle moves right", or --prompts FILE',
        )
    width, height = parse_size(asked.size, spec) if asked.size is not None else (None, None)
    base = Job(
        asked.prompt or "",
        seed=asked.seed,
        width=width,
        height=height,
        frames=asked.frames,
        fps=asked.fps,
        steps=asked.steps,
        guidance=asked.guidance,
        negative_prompt=asked.negative_prompt,
        image=asked.image,
    )
    if asked.prompts is None:
        jobs = [replace(base, out=asked.out)]
        check_job(jobs[0], spec)
    else:
        if asked.image is not None or spec.task != "i2v":
            check_job(replace(base, prompt="the options of the command line"), spec)
        jobs = number_outputs(read_prompts(asked.prompts, base, spec), asked.out)
    check_outputs(jobs, spec, [asked.report_path, *([asked.ledger_path] if asked.prompts else [])])
    return jobs


def check_apart(asked: Asked, jobs: Sequence[Job], written: Mapping[str, Path | None], read: Mapping[str, Path | None]) -> None:
    """InputError for a file that would be written twice, or over one that the run reads.

    `written` and `read` are files by option, besides those of `asked` and `jobs`.
    """
    images = [job.image for job in jobs if job.image is not None]
    inputs = {"--prompts": asked.prompts, **read, **{f"image {path}": path for path in images}}
    taken = {os.path.realpath(path): name for name, path in inputs.items() if path is not None}
    outputs: list[tuple[str, Path | None]] = [(f"video {job.out}", job.out) for job in jobs]
    outputs += [("--report", asked.report_path), ("the list of finished jobs", asked.ledger_path if asked.prompts else None)]
    for name, path in [*outputs, *written.items()]:
        if path is None:
            continue
        key = os.path.realpath(path)
        if key in taken:
            raise InputError(f"{name} and {taken[key]} are both {path}", fix="give one of them another name")
        taken[key] = name


def by_shape(jobs: Sequence[Job], spec: ModelSpec) -> list[list[Job]]:
    """Jobs of one size and length together, in order of first appearance: one plan serves one shape."""
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        full = job.resolved(spec)
        groups.setdefault((full.width, full.height, full.frames), []).append(job)
    return list(groups.values())


def check_replay(plan: Plan, spec: ModelSpec, profile: Profile, groups: Sequence[Sequence[Job]]) -> None:
    """PlanError unless a saved plan is for this model, attention, dtype and shape."""
    wanted: dict[str, Any] = {
        "model": spec.name,
        "attention": profile.attention.model_dump(mode="json"),
        "compute": profile.precision.compute,
    }
    found = [_differs(plan.header, name, value) for name, value in wanted.items()]
    for group in groups:
        full = group[0].resolved(spec)
        found += [_differs(plan.header, "size", [full.width, full.height]), _differs(plan.header, "frames", full.frames)]
    lines = [line for line in found if line]
    if lines:
        raise PlanError(
            "the plan is for something else", tried=lines, fix="give matching options, or make a plan with `turbort plan -o FILE`"
        )


def _differs(header: Mapping[str, Any], name: str, value: Any) -> str | None:
    return None if header.get(name) == value else f"{name}: the plan says {header.get(name)}, this run {value}"
