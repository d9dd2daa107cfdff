"""`turbort inspect FILE`: what a file of weights is, from its header."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, ui

if TYPE_CHECKING:
    from turbort.checkpoints import Checkpoint
    from turbort.models.identify import Match

COLUMNS = ("role", "precision", "tensors", "parameters")


@ui.guarded
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of weights, an index of shards, or a folder.")],
    json: options.Json = False,
) -> None:
    """Say what weights are: dialect, model, precision per role, size, and what is missing or surplus. Reads headers only."""
    from turbort.checkpoints import open_checkpoint
    from turbort.models.identify import identify

    checkpoint = open_checkpoint(file)
    match = identify(checkpoint)
    data = description(checkpoint, match)
    if json:
        ui.emit_json(data)
        return
    ui.table(data["roles"], COLUMNS, title=_title(data))
    for kind in ("missing", "unexpected", "wrong_shape"):
        for line in _first(data[kind]):
            ui.result(f"{kind.replace('_', ' ')}: {line}")


def description(checkpoint: Checkpoint, match: Match | None) -> dict[str, Any]:
    """Everything about a checkpoint as plain data."""
    return {
        "path": str(checkpoint.path),
        "dialect": checkpoint.dialect.name,
        "part": match.part if match else "unknown",
        "models": list(match.models) if match and not match.problems else [],
        "nearest": list(match.models) if match else [],
        "files": [str(file) for file in checkpoint.files],
        "bytes": sum(file.stat().st_size for file in checkpoint.files),
        "tensors": len(checkpoint.entries),
        "parameters": sum(_count(entry.shape) for entry in checkpoint.entries.values() if not entry.alias),
        "roles": _roles(checkpoint),
        "missing": list(match.missing) if match else [],
        "unexpected": list(match.unexpected) if match else [],
        "wrong_shape": list(match.wrong) if match else [],
    }


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _roles(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    from turbort.checkpoints.roles import role_of

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name, entry in checkpoint.entries.items():
        if entry.alias:
            continue
        key = (role_of(name), entry.stored)
        row = rows.setdefault(key, {"role": key[0], "precision": key[1], "tensors": 0, "parameters": 0})
        row["tensors"] += 1
        row["parameters"] += _count(entry.shape)
    return sorted(rows.values(), key=lambda row: -row["parameters"])


def _title(data: dict[str, Any]) -> str:
    from turbort.units import format_bytes

    fits = " or ".join(data["models"])
    near = " or ".join(data["nearest"])
    problems = sum(len(data[kind]) for kind in ("missing", "unexpected", "wrong_shape"))
    model = (
        f"{data['part']} of {fits}"
        if fits
        else f"nearest {data['part']} of {near}, {problems} differences"
        if near
        else "no known model"
    )
    size = f"{format_bytes(data['bytes'])} in {len(data['files'])} file{'s' if len(data['files']) > 1 else ''}"
    return f"{data['path']}: dialect {data['dialect']}, {model}, {data['parameters'] / 1e9:.2f}B parameters, {size}"


def _first(lines: list[str], count: int = 10) -> list[str]:
    return lines if len(lines) <= count else [*lines[:count], f"and {len(lines) - count} more"]
