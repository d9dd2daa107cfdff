"""Pruning a checkpoint to block-sparse quantised weights, one weight at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from turbort.checkpoints import bsq_file
from turbort.checkpoints.checkpoint import Checkpoint
from turbort.checkpoints.roles import may_quantise, role_of
from turbort.checkpoints.safetensors_writer import SafetensorsWriter
from turbort.checkpoints.source import Header
from turbort.errors import InputError, unknown
from turbort.io.atomic import Sink, resolve_target, write_error
from turbort.quant.bsq import TILES
from turbort.quant.prune import by_magnitude, output_error, second_order
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize


@dataclass(frozen=True)
class Tiled:
    """One pruned weight: `nmse` against the values read, and `felt` = E|dW x|^2 / E|W x|^2 where moments are known."""

    name: str
    role: str
    shape: tuple[int, ...]
    kept: int
    nmse: float
    felt: float | None


def prune(
    checkpoint: Checkpoint,
    target: Path,
    precision: str,
    *,
    tile: int = 8,
    density: float = 0.5,
    moments: Mapping[str, Tensor] | None = None,
    on_layer: Callable[[Tiled, int], None] = lambda layer, total: None,
) -> list[Tiled]:
    """Write `checkpoint` with `density` of the tiles of each block matrix, quantised; everything else as it is.

    `moments` are E[x x^T] by weight name: with them tiles are chosen and kept weights corrected by second order, without them
    by magnitude. Raises InputError for settings that do not exist, or a checkpoint without block matrices.
    """
    if precision not in bsq_file.BITS:
        raise unknown("block-sparse precision", precision, bsq_file.BITS)
    if tile not in TILES:
        raise InputError(f"tile {tile} is not {' or '.join(map(str, TILES))}", fix="use --tile 8")
    if not 0.0 < density <= 1.0:
        raise InputError(f"density {density} is not above 0 and at most 1", fix="use --density 0.5 to keep half of the tiles")
    path = resolve_target(target)
    if path.suffix != ".safetensors":
        raise InputError(
            f"block-sparse weights are stored as safetensors, not {path.suffix or 'without a suffix'}",
            fix=f"write to {path.with_suffix('.safetensors')}",
        )
    entries = {name: entry for name, entry in checkpoint.entries.items() if not entry.alias}
    shapes = {name: entry.shape for name, entry in entries.items() if may_quantise(name, entry.shape)}
    if not shapes:
        raise InputError(f"{checkpoint.path} has no matrices that would be pruned", fix="name a transformer")
    absent = [name for name in shapes if moments is not None and name not in moments]
    if absent:
        raise InputError("the moments do not cover every weight", tried=absent[:10], fix="calibrate this model with --moments")
    announced: dict[str, Header] = {}
    for name, entry in entries.items():
        if name in shapes:
            announced |= bsq_file.headers(
                name, entry.shape, tile, bsq_file.BITS[precision], kept_tiles(entry.shape, tile, density)
            )
        else:
            announced[name] = Header(entry.shape, entry.dtype)
    rows: list[Tiled] = []
    sink = Sink(path)
    try:
        writer = SafetensorsWriter(sink, announced, bsq_file.metadata(precision, tile, shapes))
        for name, entry in entries.items():
            value = entry.read()
            wide = value.dequantize(torch.float32) if isinstance(value, QTensor) else value
            if name not in shapes:
                writer.write(name, wide.to(entry.dtype))
                continue
            q, row = _pruned(name, wide.to(torch.float32), precision, tile, density, None if moments is None else moments[name])
            for stored, tensor in bsq_file.values(name, q).items():
                writer.write(stored, tensor)
            rows.append(row)
            on_layer(row, len(shapes))
        sink.commit()
    except BaseException as error:
        sink.discard()
        if isinstance(error, OSError):
            raise write_error(path, error, sink.written) from error
        raise
    return rows


def kept_tiles(shape: tuple[int, ...], tile: int, density: float) -> int:
    """Tiles that remain of a matrix."""
    return max(1, round(density * -(-shape[0] // tile) * -(-shape[1] // tile)))


def _pruned(name: str, wide: Tensor, precision: str, tile: int, density: float, moments: Tensor | None) -> tuple[QTensor, Tiled]:
    found = by_magnitude(wide, tile, density) if moments is None else second_order(wide, moments, tile, density)
    q = quantize(found.weight, precision, tile=tile, mask=found.mask)
    made = q.dequantize(torch.float32)
    power = float(wide.square().sum())
    nmse = float((made - wide).square().sum()) / power if power else 0.0
    felt = None if moments is None else output_error(wide, made, moments)
    return q, Tiled(name, role_of(name), tuple(wide.shape), int(found.mask.sum()), nmse, felt)
