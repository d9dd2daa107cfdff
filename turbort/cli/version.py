"""`turbort version`: versions of everything that decides what a run computes."""

from __future__ import annotations

from turbort.cli import options, ui


@ui.guarded
def version(json: options.Json = False) -> None:
    """Show the versions of turbort, Python, torch and the packages that decide what a run computes."""
    from turbort.report import versions

    found = versions()
    if json:
        ui.emit_json(found)
        return
    width = max(map(len, found))
    for name in ("turbort", *(name for name in found if name != "turbort")):
        ui.result(f"{name:<{width}}  {found[name]}")
