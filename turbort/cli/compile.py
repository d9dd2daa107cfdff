"""`turbort compile`: programs for a device that need not be here, written to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from turbort.cli import options, ui
from turbort.errors import InputError


@ui.guarded
def compile(
    profile: Annotated[str, typer.Option("--profile", metavar="NAME|FILE", help="Hardware profile to compile for.")],
    model: options.Model = "tiny",
    size: options.Size = None,
    frames: options.Frames = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", metavar="FILE", help="Choose precisions by what `turbort calibrate` found.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for what is made.")] = Path("compiled"),
    json: options.Json = False,
) -> None:
    """Plan a model and compile the plan ahead of time, where the profile's backend can. Needs no weights and no device.

    The folder holds plan.yaml, what the backend compiled, and manifest.json; `turbort run --plan DIR` uses them.
    """
    from turbort import artifacts
    from turbort.cli.choose import choose, find_model
    from turbort.cli.plan import shape
    from turbort.cli.plan_evidence import Evidenced

    choice = choose(profile, None, absent=True)
    spec = find_model(model, choice.registry)
    job = shape(spec, size, frames).resolved(spec)
    backend = choice.registry.backend(choice.target.backend)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / artifacts.MANIFEST).is_file():
        raise InputError(f"{out} holds something else", fix="name a folder that is new, or of an earlier `turbort compile`")
    plan = Evidenced(choice, spec, job, None, None, calibration).plan()
    ui.say(f"compiling {spec.name}, plan {plan.digest}, for {choice.target.device.name}")
    pixels = (job.width or 0, job.height or 0)
    facts = backend.compile_ahead(spec, choice.profile, choice.registry, out, pixels, job.frames or 0, plan)
    if facts is None:
        raise InputError(f"backend {backend.name} compiles nothing ahead of time", fix="choose a profile of another backend")
    made = artifacts.write(out, plan, facts)
    if json:
        ui.emit_json({"out": str(out), "plan": made.plan, "files": len(made.files), **facts})
    else:
        ui.result(f"plan: {made.plan}")
        for name, value in facts.items():
            ui.result(f"{name}: {len(value) if name == 'kernels' else value}")
    ui.say(f"written to {out}", "good")
