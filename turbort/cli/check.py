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
    json: options.Json = False,
) -> None:
    """Run the conformance suite on a backend. Exit code 1 when a case fails or a waived one passes."""
    from turbort.testing import Suite, counts

    suite = Suite(backend, device=device, op=op, precision=precision, sample=sample, large=large)
    if list_only:
        for case_id in suite.ids:
            ui.result(case_id)
        return
    results = _run(suite)
    totals = counts(results)
    if json:
        ui.emit_json(
            {"backend": backend, "device": suite.device.name, "counts": totals, "results": [found.row() for found in results]}
        )
    elif markdown:
        ui.result(support_table(backend, suite.device.name, results))
    else:
        _print(results, every)
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


def _print(results: list[Result], every: bool) -> None:
    """The cases that did not simply pass; refusals only with `--verbose`, because they are no fault."""
    quiet = {"pass", "rejected"}
    rows: list[dict[str, Any]] = [
        {"": found.outcome.sign, "outcome": found.outcome.value, "case": found.id, "check": found.check, "message": found.message}
        for found in results
        if every or found.outcome.value not in quiet
    ]
    if rows:
        ui.table(rows, ("", "case", "check", "message"), styles=lambda row: STYLES.get(row["outcome"], "quiet"))


def support_table(backend: str, device: str, results: list[Result]) -> str:
    """Passed and other cases by op, kernel and precision, in Markdown."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for found in results:
        groups.setdefault(tuple(found.id.split("/")[:3]), []).append(found)
    lines = [f"`{backend}` on {device}", "", "| op | kernel | precision | passed | others |", "|---|---|---|---|---|"]
    for key, group in groups.items():
        op, kernel, precision = (*key, "", "")[:3]
        others: dict[str, int] = {}
        for found in group:
            if found.outcome.value != "pass":
                others[found.outcome.value] = others.get(found.outcome.value, 0) + 1
        passed = sum(found.outcome.value == "pass" for found in group)
        rest = ", ".join(f"{count} {name}" for name, count in others.items())
        lines.append(f"| {op} | {kernel} | {precision} | {passed} | {rest} |")
    return "\n".join(lines)
