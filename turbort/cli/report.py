"""`turbort report`: a run's receipt for people, as tables or as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from turbort.cli import options, ui
from turbort.errors import InputError

FIX = "give a file written by `turbort run` or `turbort verify -o`"


@ui.guarded
def report(
    file: Annotated[Path, typer.Argument(help="A report: out.report.json.")],
    html: Annotated[bool, typer.Option("--html", help="Write one self-contained page.")] = False,
    out: options.Out = None,
) -> None:
    """Show a report: what ran, what the monitor did, and the gates of a verification. `--html` writes a page beside it."""
    document = _read(file)
    if not html:
        _show(document)
        return
    from turbort.io import atomic_text, resolve_target
    from turbort.quality.frames import load_frames
    from turbort.quality.page import page

    target = out or file.with_name(f"{file.name.removesuffix('.json').removesuffix('.report')}.report.html")
    resolve_target(target)
    name = document.get("verification", {}).get("frames_file")
    frames = load_frames(file.with_name(name)) if name and file.with_name(name).is_file() else None
    atomic_text(target, page(document, frames))
    ui.result(str(target))


def _read(file: Path) -> dict[str, Any]:
    import json

    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"cannot read report {file}: {error}", fix=FIX) from None
    if isinstance(document, dict) and "runs" in document:
        count = len(document["runs"])
        raise InputError(f"{file} holds {count} runs of different shapes", fix="make a report of one run")
    if not isinstance(document, dict) or not {"plan", "executed", "seconds"} <= document.keys():
        raise InputError(f"{file} is not a report", fix=FIX)
    return document


def _show(document: dict[str, Any]) -> None:
    ui.table(document["executed"], ("stage", "op", "provider", "precision", "sites", "calls"), title="what ran")
    events = [event for part in document.get("monitor", {}).get("transformers", ()) for event in part["events"]]
    if events:
        ui.table(events, ("step", "action", "site", "share", "from", "to"), title="monitor")
    numbers = document.get("verification", {}).get("numbers")
    if numbers:
        ui.table(numbers, ("gate", "name", "value", "unit", "limit", "passed", "note"), title="gates")
