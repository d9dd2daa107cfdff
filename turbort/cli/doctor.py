"""`turbort doctor`: what works here, what does not, and what would change that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turbort.cli import options, ui

if TYPE_CHECKING:
    from turbort.checks import Check, Outcome
    from turbort.registry import Plugin, Registry

SIGNS = {"ok": "ok", "warn": "warning", "fail": "FAILED", "off": "not here"}
STYLES = {"ok": None, "warn": "warn", "fail": "bad", "off": "quiet"}


@ui.guarded
def doctor(json: options.Json = False) -> None:
    """Check Python, torch, packages, profiles, plugins and devices. Exit code 1 when turbort cannot work."""
    from turbort.checks import Check, builtin_checks, run_checks
    from turbort.registry import Registry

    registry = Registry()
    checks = [*builtin_checks(), Check("tiny model", _tiny), *_backends(registry), *registry.checks, *_plugins(registry)]
    rows: list[dict[str, Any]] = [
        {"check": name, "status": found.status, "detail": found.detail, "fix": found.fix} for name, found in run_checks(checks)
    ]
    if json:
        ui.emit_json(rows)
    else:
        shown = [{**row, "result": SIGNS[row["status"]]} for row in rows]
        ui.table(shown, ("check", "result", "detail", "fix"), styles=lambda row: STYLES[row["status"]])
    if any(row["status"] == "fail" for row in rows):
        ui.leave(1)


def _tiny() -> Outcome:
    """Whether the files of the embedded model are there."""
    from turbort.checks import Outcome
    from turbort.errors import TurbortError
    from turbort.models.files import locate
    from turbort.models.spec import MODELS

    try:
        spec = MODELS["tiny"]
        if spec.root is None:
            return Outcome("fail", "the embedded model has no folder", "install turbort again")
        files = locate(spec, spec.root)
    except TurbortError as error:
        return Outcome("fail", "; ".join((error.message, *error.tried)), "install turbort again")
    size = sum(path.stat().st_size for path in files.values() if path.is_file())
    return Outcome("ok", f"{size / 1e6:.1f} MB in {spec.root}")


def _backends(registry: Registry) -> list[Check]:
    """A row per backend with its devices."""
    from turbort.backend import Unavailable
    from turbort.checks import Check, Outcome
    from turbort.units import format_bytes

    def probe(name: str) -> Outcome:
        found = registry.probe(name)
        if isinstance(found, Unavailable):
            return Outcome("off", found.reason, found.fix)
        devices = [f"{device.name} ({device.arch}, {format_bytes(device.memory)})" for device in found]
        details = [f"{key} {value}" for device in found[:1] for key, value in registry.backends[name].explain(device).items()]
        return Outcome("ok", "; ".join((*devices, *details))) if devices else Outcome("off", "found no device")

    return [Check(f"backend {name}", lambda name=name: probe(name)) for name in sorted(registry.backends)]  # type: ignore[misc]


def _plugins(registry: Registry) -> list[Check]:
    """A row per plugin: where it comes from, or why it failed to load. Last, because probing may break one."""
    from turbort.checks import Check, Outcome

    def loaded(plugin: Plugin) -> Outcome:
        known = registry.plugins[plugin.name]
        if known.problem:
            return Outcome("warn", known.problem.reason, known.problem.fix)
        return Outcome("ok", f"{known.target} from {known.distribution} {known.version}".strip())

    return [Check(f"plugin {plugin.name}", lambda plugin=plugin: loaded(plugin)) for plugin in registry.plugins.values()]  # type: ignore[misc]
