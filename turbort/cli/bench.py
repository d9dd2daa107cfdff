"""`turbort bench`: where a step's time goes on this device, and with `--save` the configurations that are fastest on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, ui
from turbort.errors import InputError

if TYPE_CHECKING:
    from turbort.cli.choose import Choice
    from turbort.models.spec import ModelSpec
    from turbort.plan import Plan

COLUMNS = ("class", "ms", "share")


@ui.guarded
def bench(
    model: options.Model = "tiny",
    profile: options.Profile = None,
    on: options.On = None,
    size: options.Size = None,
    frames: options.Frames = None,
    save: Annotated[
        bool,
        typer.Option(
            "--save", help="First tune and time the kernels on this device, and keep what was found for runs and plans."
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Time one denoising step of a model with random weights, by class of work; needs the device and no weights.

    With `--save`, first tries the kernels' configurations at the model's sizes, which runs on this device then use, and times
    every kernel that a plan could choose, which plans then show (`measured 0.41 ms vs 0.63`) and weigh.
    """
    from turbort.bench import step_times
    from turbort.cli.choose import choose, find_model
    from turbort.cli.plan import make, shape

    choice = choose(profile, on)
    spec = find_model(model, choice.registry)
    job = shape(spec, size, frames)
    made = make(choice, spec, job, batch=1)
    if choice.target.device.torch_name == "meta":
        raise InputError("a device without values has no times", fix="leave out `--on null`")
    tuned = _tuned(choice, made) if save else []
    if save:
        from turbort.cli.plan_evidence import Evidenced

        Evidenced(choice, spec, job, 1, None, None).measure()
    times = step_times(spec, choice.profile, made, choice.registry, choice.target.device)
    limit = choice.profile.monitor.quant_overhead
    rows = [{"class": name, "seconds": seconds} for name, seconds in sorted(times.classes.items(), key=lambda row: -row[1])]
    rows.append({"class": "idle", "seconds": times.idle})
    if json:
        found = {"device": choice.target.device.name, "model": spec.name, "plan": made.digest, "step_seconds": times.whole}
        ui.emit_json({**found, "classes": rows, "quantising": times.quantising, "quant_overhead": limit, "tuned": tuned})
        return
    _show(spec, choice, made, rows, times.whole)
    if times.quantising > limit:
        ui.warn(f"quantising takes {times.quantising:.1%} of the step; the profile's quant_overhead allows {limit:.0%}")


def _show(spec: ModelSpec, choice: Choice, made: Plan, rows: Sequence[dict[str, Any]], whole: float) -> None:
    width, height = made.header["size"]
    title = f"one step of {spec.name}, {width}x{height}, {made.header['frames']} frames, on {choice.target.device.name}"
    shown = [
        {"class": row["class"], "ms": f"{1e3 * row['seconds']:.2f}", "share": f"{row['seconds'] / whole:.1%}"} for row in rows
    ]
    ui.table(shown, COLUMNS, title=f"{title}: {1e3 * whole:.1f} ms")


def _tuned(choice: Choice, made: Plan) -> list[dict[str, Any]]:
    """Try configurations, and say what became of each kernel."""
    rows = []
    for row in choice.registry.backend(choice.target.backend).tune(choice.target.device, made):
        rows.append(dict(row))
        ui.say(f"{row['kernel']} {row['key']}: {row['ms']:.3f} ms, shipped {row['shipped_ms']:.3f} ms")
    if not rows:
        ui.say(f"the kernels of {choice.target.backend} have one configuration each", "quiet")
    return rows
