"""`turbort run --profile-ops`: the table of times and bytes, and the trace file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbort.cli import ui

if TYPE_CHECKING:
    from turbort.session import Session


def write(session: Session, report: Path, *, quiet: bool) -> None:
    """Write `NAME.trace.json` beside the report and show the table, where ops were profiled."""
    if session.ops is None:
        return
    import json

    from turbort.io import atomic_text

    trace = report.with_name(f"{report.name.removesuffix('.json').removesuffix('.report')}.trace.json")
    atomic_text(trace, json.dumps(session.ops.chrome_trace()) + "\n")
    if not quiet:
        show(session.ops.as_data(session.profile.monitor.quant_overhead), trace)


def show(data: dict[str, Any], trace: Path) -> None:
    """Ops by time, and the shares with their budgets, on stderr."""
    from turbort.units import format_bytes

    rows = [
        {
            "stage": row["stage"],
            "op": row["op"],
            "precision": row["precision"],
            "calls": row["calls"],
            "ms": f"{1000 * row['seconds']:.2f}",
            "share": "" if row["share"] is None else f"{row['share']:.1%}",
            "quantising": f"{row['quantise_share']:.1%}" if row["quantise"] and row["quantise_share"] else "",
            "moved": format_bytes(row["moved"]),
            "needed": format_bytes(row["needed"]),
        }
        for row in data["ops"]
    ]
    columns = ("stage", "op", "precision", "calls", "ms", "share", "quantising", "moved", "needed")
    ui.table(rows, columns, title="time and bytes by op (site by site, the device synchronised around each)", stderr=True)
    within = data["within_budget"]
    verdict = f"{data['quantise_share']:.1%} of the transformer's time, budget {data['quantise_budget']:.0%}"
    ui.say(f"  quantising  {verdict}", "good" if within else "warn")
    ui.say(f"  attention   {data['attention_share']:.1%} of the transformer's time")
    moved, needed = data["bytes_moved"], max(1, data["bytes_needed"])
    ui.say(f"  bytes       {format_bytes(moved)} moved, {format_bytes(needed)} needed ({moved / needed:.2f} x)")
    ui.say(f"  trace       {trace} (chrome://tracing, ui.perfetto.dev)")
