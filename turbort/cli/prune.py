"""`turbort prune SRC DST`: block-sparse quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, ui
from turbort.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from turbort.checkpoints.sparse import Tiled

COLUMNS = ("role", "weights", "tiles kept", "weights' nmse", "output's nmse")


@ui.guarded
def prune(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A transformer's weights in any dialect that turbort reads.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="File to write: .safetensors.")],
    precision: Annotated[str, typer.Option("--precision", metavar="NAME", help="bsq8 or bsq4.")] = "bsq8",
    tile: Annotated[int, typer.Option("--tile", metavar="T", help="Edge of a tile: 4 or 8.")] = 8,
    density: Annotated[float, typer.Option("--density", metavar="D", help="Share of tiles to keep.")] = 0.5,
    moments: Annotated[
        Path | None, typer.Option("--moments", metavar="FILE", help="Of `turbort calibrate --moments`: prune by second order.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Keep the tiles of each block matrix that matter most, in 8 or 4 bits with a scale per tile."""
    from dataclasses import asdict

    from turbort.checkpoints import open_checkpoint
    from turbort.checkpoints.sparse import prune as run

    checkpoint = open_checkpoint(source)
    known = None if moments is None else read_moments(moments, checkpoint.digest)
    rows = run(checkpoint, target, precision, tile=tile, density=density, moments=known)
    if json:
        ui.emit_json({"path": str(target), "layers": [asdict(row) for row in rows]})
        return
    way = "magnitude" if known is None else "second order"
    ui.table(_by_role(rows), COLUMNS, title=f"{source}: {precision}, {tile}x{tile} tiles, by {way}", stderr=True)
    ui.result(str(target))


def read_moments(path: Path, digest: str) -> dict[str, Tensor]:
    """E[x x^T] by weight name; InputError for moments of other weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            bound = (file.metadata() or {}).get("checkpoint")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read moments {path}: {error}", fix="write them with `turbort calibrate --moments`") from None
    if bound != digest:
        raise InputError(
            f"{path} holds the moments of other weights",
            tried=[f"of {bound}", f"these are {digest}"],
            fix="calibrate these weights with --moments",
        )
    return found


def _by_role(rows: Sequence[Tiled]) -> list[dict[str, Any]]:
    groups: dict[str, list[Tiled]] = {}
    for row in rows:
        groups.setdefault(row.role, []).append(row)
    return [
        {
            "role": role,
            "weights": len(some),
            "tiles kept": sum(row.kept for row in some),
            "weights' nmse": f"{max(row.nmse for row in some):.3g}",
            "output's nmse": None if some[0].felt is None else f"{max(row.felt or 0.0 for row in some):.3g}",
        }
        for role, some in groups.items()
    ]
