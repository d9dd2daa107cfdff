"""`turbort verify`: a profile against the unquantised run, judged by its gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, ui
from turbort.errors import InputError

if TYPE_CHECKING:
    from turbort.job import Job
    from turbort.models.spec import ModelSpec
    from turbort.quality.verify import Verification

PROMPTS = ("a red circle moves right", "a blue star moves up")
"""What is verified where no prompt is given; every model understands them."""
FEW = 4


@ui.guarded
def verify(
    model: options.Model = "tiny",
    profile: options.Profile = None,
    on: options.On = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help="What to make; may be given several times.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts, one a line.")] = None,
    weights: options.Weights = None,
    plan: Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="Verify this plan, not the planner's.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Sampling steps; at most 4 of the model's when absent.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the noise, the same in both runs.")] = 0,
    size: options.Size = None,
    frames: options.Frames = None,
    sampler: options.Sampler = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Report as JSON, for `turbort report FILE --html`.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Run the same noise and prompts unquantised and in a profile, and judge the profile. Exit code 1 below a gate."""
    from turbort.cli.choose import choose, find_model
    from turbort.cli.plan import with_sampler
    from turbort.models.files import as_trained, locate
    from turbort.plan import Plan
    from turbort.quality.verify import verify as run
    from turbort.registry import Registry

    saved = Plan.load(plan) if plan else None
    spec = with_sampler(find_model(model, Registry()), sampler)
    choice = choose(profile or (str(saved.header["profile"]) if saved else None), on)
    spec = with_sampler(as_trained(spec, locate(spec, weights or spec.root or Path.cwd())), sampler)
    if out is not None:
        from turbort.io import resolve_target

        resolve_target(out)
    jobs = _jobs(spec, prompt, prompts, seed, size, frames, steps)
    result = run(
        spec,
        choice.profile,
        jobs,
        registry=choice.registry,
        target=choice.target,
        root=weights,
        plan=saved,
        tell=lambda text: ui.say(text, "quiet"),
    )
    if out is not None:
        _write(result, out)
    if json:
        ui.emit_json(result.as_data())
    else:
        show(result)
    if not result.passed:
        ui.leave(1)


def _jobs(
    spec: ModelSpec,
    prompt: list[str] | None,
    file: Path | None,
    seed: int,
    size: str | None,
    frames: int | None,
    steps: int | None,
) -> list[Job]:
    from turbort.job import Job
    from turbort.request import check_job, parse_size, read_prompts

    if prompt and file:
        raise InputError("--prompt and --prompts exclude each other", fix="give only one of them")
    width, height = parse_size(size, spec) if size else (None, None)
    few = min(FEW, spec.preset.steps) if steps is None else steps
    base = Job("", seed=seed, width=width, height=height, frames=frames, steps=few)
    if file is not None:
        return read_prompts(file, base, spec)
    from dataclasses import replace

    jobs = [replace(base, prompt=text) for text in (prompt or PROMPTS)]
    for job in jobs:
        check_job(job, spec)
    return jobs


def _write(result: Verification, out: Path) -> None:
    """The report of the quantised run with the verification in it, and the frames of both runs beside it."""
    import json

    from turbort.io import atomic_text
    from turbort.quality.frames import save_frames

    document = {**result.report, "verification": result.as_data()}
    document["verification"]["frames_file"] = save_frames(result.clips, out).name
    atomic_text(out, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    ui.say(f"report written to {out}")


def show(result: Verification) -> None:
    """The numbers, the worst sites and the verdict."""
    header = result.header
    ui.say(f"{header['model']} in {header['profile']} on {header['device']}, against {header['baseline']}")
    columns = ("gate", "number", "value", "asked", "verdict", "note")
    ui.table([_row(number.as_data()) for number in result.numbers], columns, styles=_style)
    if result.promotions and (not result.passed or any(not site.passed for site in result.sites)):
        rows = [_promotion(promotion.as_data()) for promotion in result.promotions]
        title = "worst sites, and what promoting them would cost"
        ui.table(rows, ("site", "nmse", "at", "next", "time", "weight", "note"), title=title)
    failed = [number.name for number in result.numbers if number.passed is False]
    if failed:
        ui.say(f"below the gate: {', '.join(failed)}", "bad")
        if result.promotions:
            ui.say(f"fix: raise the sites above in the profile's precision, the worst first: {_glob(result)}", "good")
    else:
        ui.say("every gate passed", "good")


def _glob(result: Verification) -> str:
    first = result.promotions[0]
    path = first.path.partition("/")[2].removesuffix(".op")
    return f'overrides: {{"{path}*": {first.next}}}' if first.next else path


def _row(number: dict[str, Any]) -> dict[str, Any]:
    value = number["value"]
    text = "" if value is None else f"{value:.4g}" + (f" {number['unit']}" if number["unit"] else "")
    verdict = {True: "passed", False: "failed", None: "for information"}[number["passed"]]
    return {
        "gate": number["gate"] or "-",
        "number": number["name"],
        "value": text,
        "asked": number["limit"],
        "verdict": verdict,
        "note": number["note"],
    }


def _style(row: Any) -> str | None:
    return {"failed": "bad", "passed": "good"}.get(row["verdict"])


def _promotion(row: dict[str, Any]) -> dict[str, Any]:
    from turbort.units import format_bytes

    known = row["next"] is not None
    return {
        "site": row["path"],
        "nmse": f"{row['nmse']:.2e}",
        "at": row["precision"],
        "next": row["next"],
        "time": f"{row['ms']:g} -> {row['next_ms']:g} ms a call" if known else f"{row['ms']:g} ms a call",
        "weight": f"{format_bytes(row['weight'])} -> {format_bytes(row['next_weight'])}" if row["next_weight"] else "",
        "note": row["note"],
    }
