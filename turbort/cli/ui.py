"""All of the command line's looks: five styles, tables, messages. Results go to stdout, talk goes to stderr."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import typer

from turbort.errors import TurbortError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

P = ParamSpec("P")
R = TypeVar("R")
STYLES = {"heading": "bold", "good": "green", "warn": "yellow", "bad": "bold red", "quiet": "dim"}
MANY = 10_000  # columns; more than any table has
PIPE_WIDTH = 400  # a table is as wide as it needs to be; only a terminal makes it narrower
INTERRUPTED = 130


def console(*, stderr: bool = False) -> Console:
    """A console for results (stdout) or talk (stderr). Data is shown as it is: no markup, no highlighting."""
    from rich.console import Console
    from rich.theme import Theme

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=stderr, theme=Theme(STYLES), highlight=False, markup=False, emoji=False, width=width, soft_wrap=False)


def say(text: str, style: str | None = None) -> None:
    """A line of talk on stderr."""
    console(stderr=True).print(text, style=style, soft_wrap=True)


def result(text: str) -> None:
    """A line of result on stdout, exactly as given."""
    typer.echo(text)


def emit_json(data: Any) -> None:
    """A result as JSON on stdout; escaped where the encoding of stdout may lack a character."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    typer.echo(json.dumps(data, indent=2, ensure_ascii=not unicode, default=str))


def interactive() -> bool:
    """Whether a person watches stderr, so that live progress makes sense."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def table(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    title: str | None = None,
    styles: Callable[[Mapping[str, Any]], str | None] = lambda row: None,
    stderr: bool = False,
    spare: Sequence[str] = (),
) -> None:
    """Print rows as a table with these columns; a column that is empty in every row is left out.

    Where the table is wider than the terminal, `spare` columns are left out, too, first named first, and a line says so.
    """
    kept = list(rows)
    shown = [column for column in columns if any(row.get(column) not in (None, "") for row in kept)]
    screen = console(stderr=stderr)
    unbound = screen.options.update(max_width=MANY)
    grid, dropped = _grid(kept, shown, styles), []
    for column in filter(shown.__contains__, spare):
        if screen.measure(grid, options=unbound).maximum <= screen.width:
            break
        dropped.append(column)
        grid = _grid(kept, [name for name in shown if name not in dropped], styles)
    if title:
        screen.print(title, style="heading", soft_wrap=True)
    screen.print(grid)
    if dropped:
        say(f"not shown in {screen.width} columns: {', '.join(dropped)}", "quiet")


def _grid(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], styles: Callable[[Mapping[str, Any]], str | None]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(header_style="heading", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        numbers = all(isinstance(row.get(column), (int, float)) or row.get(column) is None for row in rows)
        grid.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(row.get(column))) for column in columns), style=styles(row))
    return grid


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def show_error(error: TurbortError) -> None:
    """An error on stderr: the sentence, what was tried, and the fix."""
    screen = console(stderr=True)
    screen.print(f"error: {error.message}", style="bad", soft_wrap=True)
    for line in error.tried:
        screen.print(f"  - {line}", soft_wrap=True)
    if error.fix:
        screen.print(f"fix: {error.fix}", style="good", soft_wrap=True)


def warn(text: str) -> None:
    """A warning on stderr."""
    say(f"warning: {text}", "warn")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Ends a command with the exit code of the error it met: 2 bad input, 3 not available, 130 interrupted.

    `TURBORT_DEBUG=1` lets the traceback through.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TurbortError as error:
            if os.environ.get("TURBORT_DEBUG"):
                raise
            show_error(error)
            leave(error.exit_code)
        except KeyboardInterrupt:
            if os.environ.get("TURBORT_DEBUG"):
                raise
            say("interrupted; finished videos are kept, nothing half-written is left", "warn")
            leave(INTERRUPTED)

    return run


def leave(code: int) -> NoReturn:
    """End the program with this exit code."""
    raise typer.Exit(code)
