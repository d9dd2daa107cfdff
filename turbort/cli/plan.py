"""`turbort plan`: what would run where, without loading weights; `turbort plan diff A B`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from turbort.cli import options, ui
from turbort.errors import InputError

if TYPE_CHECKING:
    from turbort.cli.choose import Choice
    from turbort.job import Job
    from turbort.models.spec import ModelSpec, SamplerName
    from turbort.plan import Plan
    from turbort.policy import Evidence

app = typer.Typer(help="Show or save what would run at every call site; `plan diff A B` compares.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
@ui.guarded
def plan(
    context: typer.Context,
    model: options.Model = "tiny",
    profile: options.Profile = None,
    on: options.On = None,
    size: options.Size = None,
    frames: options.Frames = None,
    sampler: options.Sampler = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Samples per model call; the profile's when absent.")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Show the bytes of every stage, and what would stay where.")] = False,
    memory_budget: options.Budget = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", metavar="FILE", help="Choose precisions by what `turbort calibrate` found.")
    ] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Show the frontier of time and error, and the uniform choices beside it.")
    ] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the frontier, too: .png, .svg, .pdf.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time every kernel that could be chosen on the device first, and keep the times.")
    ] = False,
    out: options.Out = None,
    sites: Annotated[bool, typer.Option("--sites", help="One line per call site, with every refusal.")] = False,
    json: options.Json = False,
) -> None:
    """Plan a model under a profile on a device. Needs no weights; `--on null` needs no device either."""
    if context.invoked_subcommand is not None:
        return
    from turbort.cli.choose import choose, find_model
    from turbort.cli.memory_table import forecast_of, memory_table, parse_budget, within
    from turbort.cli.plan_evidence import Evidenced
    from turbort.cli.plan_table import grouped, plan_table

    budget = parse_budget(memory_budget)
    choice = within(choose(profile, on, absent=True), budget)
    spec = with_sampler(find_model(model, choice.registry), sampler)
    if out is not None:
        from turbort.io import resolve_target

        resolve_target(out)
    job = shape(spec, size, frames)
    planned = Evidenced(choice, spec, job, batch, budget, calibration)
    if pareto or plot:
        planned.check_frontier(plot)
    if measure:
        planned.measure()
    made = planned.plan()
    needed = forecast_of(choice, spec, made, budget) if memory or budget else None
    plane = planned.frontier() if pareto or plot else None
    if out is not None:
        from turbort.io import atomic_text

        atomic_text(out, made.dumps())
        ui.say(f"plan {made.digest} written to {out}")
    if json:
        document = {"digest": made.digest, **made.header, "groups": grouped(made), "sites": made.rows() if sites else None}
        document |= {"memory": needed.as_data()} if needed else {}
        ui.emit_json({**document, "pareto": plane.as_data()} if plane else document)
        return
    if out is None or sites:
        plan_table(made, sites=sites)
    if needed:
        memory_table(needed, spec)
    if plane:
        planned.show(plane, plot)


def shape(spec: ModelSpec, size: str | None, frames: int | None) -> Job:
    """A job that only has a size, checked against the model."""
    from turbort.job import Job
    from turbort.request import check_frames, check_size, parse_size

    width, height = parse_size(size, spec) if size else (spec.defaults.width, spec.defaults.height)
    check_size(width, height, spec)
    check_frames(spec.defaults.frames if frames is None else frames, spec)
    return Job("plan", width=width, height=height, frames=frames)


@app.command()
@ui.guarded
def diff(
    a: Annotated[Path, typer.Argument(help="A plan file.")],
    b: Annotated[Path, typer.Argument(help="Another plan file.")],
    json: options.Json = False,
) -> None:
    """Compare two plan files line by line; exit code 1 when they decide differently."""
    from turbort.plan import Plan

    left, right = Plan.load(a), Plan.load(b)
    text = left.diff(right)
    if json:
        ui.emit_json({"a": left.digest, "b": right.digest, "same": not text, "diff": text.splitlines()})
    elif text:
        ui.result(text.rstrip("\n"))
    else:
        ui.say(f"both plans decide the same ({left.digest})", "good")
    if text:
        ui.leave(1)


def with_sampler(spec: ModelSpec, sampler: str | None) -> ModelSpec:
    """The model with another of its samplers; InputError when it has no preset for that name."""
    if sampler is None:
        return spec
    if sampler not in spec.presets:
        raise InputError(f"{spec.name} has no settings for sampler {sampler!r}", fix=f"choose {' or '.join(spec.presets)}")
    return spec.with_sampler(cast("SamplerName", sampler))


def make(
    choice: Choice, spec: ModelSpec, job: Job, *, jobs: int = 1, batch: int | None = None, evidence: Evidence | None = None
) -> Plan:
    """Plan `spec` for a checked job; `batch` defaults to the samples that the profile puts into one model call."""
    from turbort.guard.levels import make_levelled_plan
    from turbort.job import samples_per_step

    full = job.resolved(spec)
    return make_levelled_plan(
        spec,
        choice.profile,
        choice.registry,
        target=choice.target,
        size=(full.width or 0, full.height or 0),
        frames=full.frames,
        batch=samples_per_step(choice.profile, jobs, full) if batch is None else batch,
        evidence=evidence,
        image=full.image is not None,
    )
