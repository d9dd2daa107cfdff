"""`turbort check BACKEND`: run the conformance suite on a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from turbort.cli import options, ui

if TYPE_CHECKING:
    from turbort.testing import Result, Suite

STYLES = {"pass": None, "fail": "bad", "fixed": "bad", "known": "warn"}
Glob = "GLOB"


@ui.guarded
def check(
    backend: Annotated[str, typer.Argument(metavar="BACKEND", help="Name of a backend, as `turbort devices` shows it.")],
    op: Annotated[str, typer.Option("--op", metavar=Glob, help="Only these ops.")] = "*",
    precision: Annotated[str, typer.Option("--precision", metavar=Glob, help="Only these precisions.")] = "*",
    sample: Annotated[str, typer.Option("--sample", metavar=Glob, help="Only these samples.")] = "*",
    device: Annotated[int, typer.Option("--device", metavar="N", min=0, help="Which of the backend's devices.")] = 0,
    large: Annotated[bool, typer.Option("--large", help="Also the large samples.")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Print the ids of the cases and stop.")] = False,
    every: Annotated[bool, typer.Option("--verbose", "-v", help="Show passing cases, too.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a support table in Markdown.")] = False,
    emulated: Annotated[bool, typer.Option("--emulated", help="On an emulated driver: proves wiring, not hardware.")] = False,
    targets: Annotated[
        str | None,
        typer.Option("--targets", metavar="A,B|all", help="Compile for these architectures instead, without a device."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Run the conformance suite on a backend. Exit code 1 when a case fails or a waived one passes."""
    if targets is not None:
        from turbort.cli.offline import check_offline

        check_offline(backend, targets, json=json)
        return
    if emulated:
        from turbort.registry import Registry

        Registry().backend(backend).emulate()
    from turbort.testing import Suite, counts

    suite = Suite(backend, device=device, op=op, precision=precision, sample=sample, large=large)
    label = "emulated" if "emulated" in suite.device.features else ""
    if list_only:
        for case_id in suite.ids:
            ui.result(f"{case_id} {label}".rstrip())
        return
    results = _run(suite)
    totals = counts(results)
    if json:
        ui.emit_json(
            {
                "backend": backend,
                "device": suite.device.name,
                "evidence": label or "device",
                "counts": totals,
                "results": [{**found.row(), "evidence": label or "device"} for found in results],
            }
        )
    elif markdown:
        from turbort.testing.report import markdown as support_table

        ui.result(support_table(f"`{backend}` on {suite.device.name}", results))
    else:
        _print(results, every, label)
    text = ", ".join(f"{count} {name}" for name, count in totals.items())
    bad = any(found.outcome.bad for found in results)
    ui.say(f"{backend} on {suite.device.name}: {text}", "bad" if bad else "good")
    if bad:
        ui.leave(1)


def _run(suite: Suite) -> list[Result]:
    """Every result, with a progress bar where a person watches."""
    if not ui.interactive():
        return list(suite)
    from rich.progress import Progress

    found = []
    with Progress(console=ui.console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=len(suite.ids))
        for result in suite:
            found.append(result)
            bar.update(task, advance=1, description=result.id.rpartition("/")[0] or result.id)
    return found


def _print(results: list[Result], every: bool, label: str) -> None:
    """One row per kernel and precision, then the cases that need attention (with `--verbose`, all of them).

    `label` says in every row when the results come from an emulated device.
    """
    from turbort.testing.report import COLUMNS, grouped

    groups = {id(group): group for group in grouped(results)}
    rows = [{**group.row(), "evidence": label, "key": key} for key, group in groups.items()]
    ui.table(rows, ("evidence", *COLUMNS), styles=lambda row: "bad" if groups[row["key"]].bad else None)
    quiet = {"pass", "rejected"}
    cases: list[dict[str, Any]] = [
        {
            "": found.outcome.sign,
            "outcome": found.outcome.value,
            "case": found.id,
            "check": ", ".join(filter(None, (found.check, *found.also))),
            "message": found.message,
            "evidence": label,
        }
        for found in results
        if every or found.outcome.value not in quiet
    ]
    if cases:
        ui.table(cases, ("", "evidence", "case", "check", "message"), styles=lambda row: STYLES.get(row["outcome"], "quiet"))
