"""The precision map of a model: one row per op of a block, one column per block. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from turbort.plan import unfold
from turbort.precision import PRECISIONS

BLOCK = re.compile(r"^dit/blocks\.(\d+)\.(.+)$")
COLOURS = {"fp32": "#cbd5e1", "fp16": "#94a3b8", "bf16": "#94a3b8", "int8": "#34d399", "int8-fp8": "#2dd4bf"}
BY_BITS = {8: "#60a5fa", 4: "#f59e0b"}
OPS = ("linear", "attention", "sla_attention")


def colour(precision: str) -> str:
    """Grey for float, blue for 8-bit and amber for 4-bit weights, green for attention."""
    row = PRECISIONS.get(precision)
    return COLOURS.get(precision) or BY_BITS.get(row.weight_bits if row else 16, "#94a3b8")


def precision_map(sites: Sequence[Mapping[str, Any]], errors: Mapping[str, float], events: Sequence[Mapping[str, Any]]) -> str:
    """A table of the linears and attentions of every block; promoted sites have a red edge, hovering shows the error."""
    cells: dict[tuple[str, int], tuple[str, str]] = {}
    for row in sites:
        if row["op"] not in OPS:
            continue
        for path in unfold(row["path"]):
            match = BLOCK.match(path)
            if match:
                cells[match.group(2).removesuffix(".op"), int(match.group(1))] = path, row["precision"]
    if not cells:
        return ""
    promoted = {path: event for event in events if event["action"] == "promote" for path in event["sites"]}
    names = list(dict.fromkeys(name for name, _ in cells))
    blocks = sorted({block for _, block in cells})
    head = "".join(f"<th>{block}</th>" for block in blocks)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(_cell(cells.get((name, block)), errors, promoted) for block in blocks)}</tr>"
        for name in names
    )
    used = list(dict.fromkeys(precision for _, precision in cells.values()))
    legend = "".join(f'<span><i style="background:{colour(name)}"></i>{escape(name)}</span>' for name in used)
    edge = '<span><i class="up"></i>promoted by the monitor</span>' if promoted else ""
    grid = f'<div class="scroll"><table class="map"><tr><th></th>{head}</tr>{body}</table></div>'
    return f'{grid}<div class="legend">{legend}{edge}</div>'


def _cell(found: tuple[str, str] | None, errors: Mapping[str, float], promoted: Mapping[str, Any]) -> str:
    if found is None:
        return "<td></td>"
    path, precision = found
    event = promoted.get(path)
    words = [path, precision]
    words += [f"NMSE {errors[path]:.2e}"] if path in errors else []
    words += [f"promoted to {event['to']} at step {event['step']}"] if event else []
    kind = ' class="up"' if event else ""
    title = escape(", ".join(words))
    return f'<td{kind} style="background:{colour(precision)}" title="{title}"></td>'
