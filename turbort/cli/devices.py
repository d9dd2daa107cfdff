"""`turbort devices`: what each backend found here, or why it found nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from turbort.cli import options, ui

if TYPE_CHECKING:
    from turbort.registry import Registry

COLUMNS = ("backend", "device", "torch", "arch", "memory", "profile", "features", "reason", "fix")


@ui.guarded
def devices(json: options.Json = False) -> None:
    """List every backend with its devices, or the reason why it has none and what would change that."""
    from turbort.registry import Registry

    rows = device_rows(Registry())
    if json:
        ui.emit_json(rows)
    else:
        shown = [{**row, "memory": _memory(row)} for row in rows]
        ui.table(shown, COLUMNS, styles=lambda row: "quiet" if row.get("reason") else None)


def device_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per device, per backend without one, and per plugin that failed to load."""
    from turbort.backend import Unavailable
    from turbort.profile import list_profiles, pick_profile

    entries = list_profiles(registry.profile_paths, precisions=registry.precisions)
    rows: list[dict[str, Any]] = []
    for name in sorted(registry.backends):
        found = registry.probe(name)
        if isinstance(found, Unavailable):
            rows.append({"backend": name, "reason": found.reason, "fix": found.fix})
            continue
        rows += [
            {
                "backend": name,
                "device": device.name,
                "torch": device.torch_name,
                "arch": device.arch,
                "memory": device.memory,
                "dtypes": sorted(device.dtypes),
                "features": sorted(device.features),
                "profile": pick_profile(device, entries).name,
                "details": dict(registry.backends[name].explain(device)),
            }
            for device in found
        ]
        if not found:
            rows.append({"backend": name, "reason": "found no device", "fix": "run `turbort doctor`"})
    for name, problem in registry.unavailable.items():
        rows.append({"backend": name, "reason": problem.reason, "fix": problem.fix})
    return rows


def _memory(row: Mapping[str, Any]) -> str | None:
    from turbort.units import format_bytes

    return format_bytes(row["memory"]) if row.get("memory") is not None else None
