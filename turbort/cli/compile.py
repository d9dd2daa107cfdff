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
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the programs.")] = Path("compiled"),
    json: options.Json = False,
) -> None:
    """Compile a model ahead of time, where the profile's backend can. Needs no weights and no device."""
    from turbort.cli.choose import choose, find_model
    from turbort.cli.plan import shape

    choice = choose(profile, None, absent=True)
    spec = find_model(model, choice.registry)
    job = shape(spec, size, frames).resolved(spec)
    backend = choice.registry.backend(choice.target.backend)
    ui.say(f"compiling {spec.name} for {choice.target.device.name}")
    facts = backend.compile_ahead(spec, choice.profile, choice.registry, out, (job.width or 0, job.height or 0), job.frames or 0)
    if facts is None:
        raise InputError(f"backend {backend.name} compiles nothing ahead of time", fix="choose a profile of another backend")
    if json:
        ui.emit_json({"out": str(out), **facts})
    else:
        for name, value in facts.items():
            ui.result(f"{name}: {value}")
    ui.say(f"written to {out}", "good")
