"""`turbort models`: every model with its defaults; `turbort models NAME`: its sizes and files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, ui

if TYPE_CHECKING:
    from turbort.models.spec import ModelSpec

COLUMNS = ("model", "task", "parameters", "size", "frames", "fps", "steps", "samplers", "guidance", "licence", "title")


@ui.guarded
def models(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Show one model's sizes and files.")] = None,
    json: options.Json = False,
) -> None:
    """List the models turbort knows, with what they make when nothing else is asked."""
    from turbort.cli.choose import find_model
    from turbort.models.spec import MODELS
    from turbort.registry import Registry

    registry = Registry()
    if model is not None:
        _one(find_model(model, registry), json=json)
        return
    rows = [_row(spec) for spec in {**MODELS, **registry.models}.values()]
    if json:
        ui.emit_json(rows)
    else:
        ui.table(rows, COLUMNS)


def _one(spec: ModelSpec, *, json: bool) -> None:
    files = [{"file": role, "where": " or ".join(patterns), "from": _source(spec, role)} for role, patterns in spec.files.items()]
    if json:
        ui.emit_json({**_row(spec), "sizes": _sizes(spec), "files": files, "repos": dict(spec.repos)})
        return
    ui.table(files, ("file", "where", "from"), title=f"{spec.name}: {spec.title}")
    folder = f"the folder {spec.root}, which comes with turbort" if spec.root else "the folder named with --weights DIR"
    ui.result(f"files are looked for in {folder}")
    ui.result("sizes: " + ", ".join(f"{name} {size}" for name, size in _sizes(spec).items()))


def _source(spec: ModelSpec, role: str) -> str:
    if role in ("dit", *spec.experts):
        return " or ".join(spec.repos.values())
    return spec.repos.get("base", "")


def _sizes(spec: ModelSpec) -> dict[str, str]:
    """What the names of sizes mean for this model."""
    from turbort.models.sizes import RESOLUTIONS, preset_size

    names = ["16:9", "9:16", "1:1", "4:3", "3:4"]
    names += [name for name in RESOLUTIONS if spec.root is None]
    found = {name: preset_size(name, spec) for name in names}
    return {name: f"{size[0]}x{size[1]}" for name, size in found.items() if size}


def _count(spec: ModelSpec) -> str:
    """Parameters of the transformer, or of each of its experts."""
    one = f"{spec.dit.parameters / 1e9:.2f}B" if spec.dit.parameters >= 1e9 else f"{spec.dit.parameters / 1e6:.1f}M"
    return f"{len(spec.experts)} x {one}" if spec.experts else one


def _row(spec: ModelSpec) -> dict[str, Any]:
    defaults, preset = spec.defaults, spec.preset
    return {
        "model": spec.name,
        "title": spec.title,
        "task": spec.task,
        "parameters": _count(spec),
        "size": f"{defaults.width}x{defaults.height}",
        "frames": defaults.frames,
        "fps": defaults.fps,
        "steps": preset.steps,
        "samplers": [spec.sampler, *sorted(name for name in spec.presets if name != spec.sampler)],
        "guidance": preset.guidance,
        "licence": spec.licence,
    }
