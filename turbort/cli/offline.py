"""`turbort check BACKEND --targets A,B`: compile for devices that are not here, as far as the backend can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turbort.cli import ui
from turbort.errors import InputError

COLUMNS = ("", "target", "case", "HBM", "VMEM", "8-bit products", "seconds", "detail")


def check_offline(backend: str, targets: str, *, json: bool) -> None:
    """Print one row per program; exit code 1 when one is not what it must be. `targets` is a comma-separated list."""
    from turbort.registry import Registry

    found = Registry().backend(backend)
    known = found.offline_targets()
    if not known:
        raise InputError(f"backend {backend} cannot compile for devices that are not here", fix="leave out --targets")
    wanted = list(known) if targets == "all" else [name for name in targets.split(",") if name]
    rows = []
    for row in found.check_offline(wanted):
        rows.append(dict(row))
        if ui.interactive():
            ui.say(f"{row['target']} {row['case']}: {'ok' if row['ok'] else row['detail']}", None if row["ok"] else "bad")
    bad = [row for row in rows if not row["ok"]]
    if json:
        ui.emit_json({"backend": backend, "targets": wanted, "passed": len(rows) - len(bad), "failed": len(bad), "results": rows})
    else:
        ui.table([_shown(row) for row in rows], COLUMNS, styles=lambda row: "bad" if row[""] == "x" else None)
    ui.say(f"{backend}: {len(rows) - len(bad)} passed, {len(bad)} failed", "bad" if bad else "good")
    if bad:
        ui.leave(1)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {
        name: f"{row[key] / 2**20:.0f} MiB" if row.get(key) is not None else None
        for name, key in (("HBM", "peak_hbm"), ("VMEM", "peak_vmem"))
    }
    return {"": "" if row["ok"] else "x", **row, **sizes, "8-bit products": row.get("dots")}
