"""`turbort quantize SRC DST`: weights in fewer bits, in a dialect of choice."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, ui
from turbort.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turbort.checkpoints.convert import Layer

COLUMNS = ("layer", "weights", "rms error", "worst", "kept")


@ui.guarded
def quantize(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Weights in any dialect that turbort reads.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="File to write: .safetensors, or .pth for TurboDiffusion's.")],
    precision: Annotated[str, typer.Option("--precision", metavar="NAME", help="w8a8, w8a8-block128, fp8 or w4a8.")] = "w8a8",
    dialect: Annotated[
        str, typer.Option("--dialect", metavar="NAME", help="turbort, turbodiffusion or compressed-tensors.")
    ] = "turbort",
    lora: options.Loras = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="torch device that does the arithmetic: cpu, cuda, npu.")
    ] = "cpu",
    layers: Annotated[bool, typer.Option("--layers", help="One line per weight instead of one per role.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    json: options.Json = False,
) -> None:
    """Convert weights, one at a time, and show how far each moved. Writes DST and DST.manifest.json, whole or not at all."""
    from turbort.checkpoints import open_checkpoint
    from turbort.checkpoints.convert import convert
    from turbort.checkpoints.lora import fuse, parse_lora

    done = 0

    def progress(layer: Layer, total: int) -> None:
        nonlocal done
        done += 1
        if not quiet and ui.interactive() and (done % 10 == 0 or done == total):
            ui.say(f"{done} of {total}: {layer.name}")

    checkpoint = fuse(open_checkpoint(source), [parse_lora(text) for text in lora or ()])
    written = convert(checkpoint, target, precision, dialect, progress, _usable(device))
    if json:
        ui.emit_json({**asdict(written), "path": str(written.path), "manifest": str(written.manifest)})
        return
    if not quiet:
        ui.table(_rows(written.layers, each=layers), COLUMNS, title=f"{checkpoint.path}: {precision} in {dialect}", stderr=True)
        ui.say(f"sha256 {written.sha256}, {written.bytes} bytes, manifest {written.manifest}")
    ui.result(str(written.path))


def _usable(device: str) -> str:
    """InputError for a name that torch does not know or has no device for."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InputError(f"--device {device}: {reason}", fix="leave it out to quantise on the CPU") from None
    return device


def _rows(layers: Sequence[Layer], *, each: bool) -> list[dict[str, Any]]:
    """Relative root-mean-square error, in percent of the weights' own, per weight or the worst of each role."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.name if each else layer.role, []).append(layer)
    return [
        {
            "layer": name,
            "weights": len(rows),
            "rms error": f"{100 * max(row.nmse for row in rows) ** 0.5:.3f} %",
            "worst": f"{max(row.worst for row in rows):.4g}",
            "kept": sum(row.kept for row in rows) or None,
        }
        for name, rows in groups.items()
    ]
