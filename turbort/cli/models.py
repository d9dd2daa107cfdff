"""`turbort models`: every model with its defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turbort.cli import options, ui

if TYPE_CHECKING:
    from turbort.models.spec import ModelSpec

COLUMNS = ("model", "task", "size", "frames", "fps", "steps", "samplers", "guidance", "licence", "title")


@ui.guarded
def models(json: options.Json = False) -> None:
    """List the models turbort knows, with what they make when nothing else is asked."""
    from turbort.models.spec import MODELS
    from turbort.registry import Registry

    rows = [_row(spec) for spec in {**MODELS, **Registry().models}.values()]
    if json:
        ui.emit_json(rows)
    else:
        ui.table(rows, COLUMNS)


def _row(spec: ModelSpec) -> dict[str, Any]:
    defaults, preset = spec.defaults, spec.preset
    return {
        "model": spec.name,
        "title": spec.title,
        "task": spec.task,
        "size": f"{defaults.width}x{defaults.height}",
        "frames": defaults.frames,
        "fps": defaults.fps,
        "steps": preset.steps,
        "samplers": [spec.sampler, *sorted(name for name in spec.presets if name != spec.sampler)],
        "guidance": preset.guidance,
        "licence": spec.licence,
    }
