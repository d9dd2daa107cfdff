"""Block-sparse files: only the kept tiles of a quantised weight, as compressed sparse rows over tiles.

<linear>.weight_tiles    int8  [kept, t, t], or uint8 [kept, t * t / 2]: two 4-bit codes a byte, the even one in the low half
<linear>.weight_scale    float [kept], one per tile
<linear>.weight_columns  int32 [kept], the tile's column; tiles lie row by row, in order of columns
<linear>.weight_rows     int32 [ceil(out / t) + 1], where each row of tiles begins
metadata "turbort"       JSON {"precision": "bsq8" | "bsq4", "tile": 4 | 8, "shapes": {"<linear>.weight": [out, in]}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from turbort.checkpoints.dialect import Entry, Headers, Metadata, Storage, plain_entry, stands_for_dtype
from turbort.checkpoints.source import Header, Source, refuse, unreadable
from turbort.quant.bsq import CompactTiles, compact, expand
from turbort.quant.qtensor import QTensor

PARTS = ("tiles", "scale", "columns", "rows")
BITS = {"bsq8": 8, "bsq4": 4}


def note(metadata: Metadata) -> Mapping[str, Any]:
    """What the file says of itself; empty for other files."""
    try:
        found = json.loads(metadata.get("turbort", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) and found.get("precision") in BITS else {}


def metadata(precision: str, tile: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The inverse of `note`."""
    return {"turbort": json.dumps({"precision": precision, "tile": tile, "shapes": {k: list(v) for k, v in shapes.items()}})}


def headers(name: str, shape: tuple[int, ...], tile: int, bits: int, kept: int) -> dict[str, Header]:
    """What is stored for a matrix of which `kept` tiles remain."""
    codes = Header((kept, tile, tile), torch.int8) if bits == 8 else Header((kept, tile * tile // 2), torch.uint8)
    return {
        f"{name}_tiles": codes,
        f"{name}_scale": Header((kept,), torch.float32),
        f"{name}_columns": Header((kept,), torch.int32),
        f"{name}_rows": Header((-(-shape[0] // tile) + 1,), torch.int32),
    }


def values(name: str, q: QTensor) -> dict[str, Tensor]:
    """The tensors that go with `headers`."""
    assert q.mask is not None  # block-sparse weights have one
    stored = compact(q.values, q.scales, q.mask, q.tile, BITS[q.scheme])
    return dict(
        zip((f"{name}_{part}" for part in PARTS), (stored.codes, stored.scales, stored.columns, stored.row_starts), strict=True)
    )


def _matches(found: Headers, about: Metadata) -> bool:
    return bool(note(about)) and any(name.endswith(".weight_tiles") for name in found)


def _entries(source: Source) -> dict[str, Entry]:
    about = note(source.metadata)
    shapes = {str(name): tuple(int(size) for size in shape) for name, shape in dict(about.get("shapes", {})).items()}
    names = [name.removesuffix("_tiles") for name in source.headers if name.endswith(".weight_tiles")]
    problems = [line for name in names if (line := _problem(source.headers, about, shapes, name))]
    refuse(source.path, "block-sparse weights that are not complete", problems)
    entries = {name: _entry(source, about, shapes[name], name) for name in names}
    used = {part for entry in entries.values() for part in entry.sources}
    return entries | {name: plain_entry(source, name) for name in source.headers if name not in used}


def _problem(found: Headers, about: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str) -> str | None:
    tile = about.get("tile")
    if tile not in (4, 8) or len(shapes.get(name, ())) != 2:
        return f"the metadata names no tile of 4 or 8, or no shape for {name}"
    kept = found[f"{name}_tiles"].shape[0] if found[f"{name}_tiles"].shape else -1
    for part, header in headers(name, shapes[name], tile, BITS[about["precision"]], kept).items():
        if part not in found:
            return f"{part} is missing"
        if found[part] != header:
            return f"{part} is {found[part].dtype} {list(found[part].shape)}, not {header.dtype} {list(header.shape)}"
    return None


def _entry(source: Source, about: Mapping[str, Any], shape: tuple[int, ...], name: str) -> Entry:
    parts = tuple(f"{name}_{part}" for part in PARTS)
    tile, scheme = int(about["tile"]), str(about["precision"])
    dtype = stands_for_dtype(source.headers, f"{name.removesuffix('.weight')}.bias")

    def read() -> QTensor:
        codes, scales, columns, rows = (source.load(part) for part in parts)
        counts, width = rows.diff(), -(-shape[1] // tile)
        inside = bool(rows[0] == 0) and bool((counts >= 0).all()) and int(rows[-1]) == len(codes)
        inside = inside and (not len(columns) or bool(((columns >= 0) & (columns < width)).all()))
        if not inside or not bool(scales.isfinite().all()):
            raise unreadable(source.path, f"the pattern or the scales of {name} are damaged")
        stored = CompactTiles(codes, scales, columns, rows, (shape[0], shape[1]), tile, BITS[scheme])
        dense, factors, mask = expand(stored)
        return QTensor(scheme, dense, factors, dtype, mask, tile)

    return Entry(shape, dtype, read, parts, scheme, stored=scheme)


BSQ = Storage("turbort-bsq", _matches, _entries)
