"""Live progress of a run: stage, step, time left, memory. Only where a person watches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from turbort.cli import ui

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from turbort.job import Event

WORDS = {
    "plan": "planning",
    "load": "loading weights",
    "text": "reading the prompt",
    "sample": "sampling",
    "decode": "decoding",
    "write": "writing",
}


class Display:
    """Listens to a session's events. `quiet`, or a stderr that nobody watches, shows nothing.

    `on_written(job number)` is called for every video that is finished, whatever is shown.
    """

    def __init__(self, *, quiet: bool = False, jobs: int = 1, on_written: Callable[[int], None] = lambda number: None) -> None:
        self._shown = not quiet and ui.interactive()
        self._jobs = jobs
        self._on_written = on_written
        self._exit = ExitStack()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._current: tuple[str, int] | None = None

    def __enter__(self) -> Display:
        if self._shown:
            self._progress = self._exit.enter_context(_bars())
            self._exit.enter_context(_told(self._progress))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._exit.close()

    def __call__(self, event: Event) -> None:
        if event.stage == "write":
            self._on_written(event.job)
        if self._progress is None:
            return
        if self._current != (event.stage, event.job):
            self._begin(event)
        if self._task is not None:
            self._progress.update(self._task, completed=event.step, total=event.steps or None, memory=_memory(event.memory))

    def _begin(self, event: Event) -> None:
        """A new bar for a new stage or job; the finished one goes away."""
        assert self._progress is not None
        if self._task is not None:
            self._progress.remove_task(self._task)
        number = (
            f" video {event.job + 1} of {self._jobs}" if self._jobs > 1 and event.stage in ("sample", "decode", "write") else ""
        )
        self._current = (event.stage, event.job)
        self._task = self._progress.add_task(WORDS.get(event.stage, event.stage) + number, total=event.steps or None, memory="")


class _Lines(logging.Handler):
    """Prints what turbort logs above the bars: a backend that compiles for minutes says so there."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.console.print(record.getMessage(), style="quiet")


@contextmanager
def _told(progress: Progress) -> Iterator[None]:
    log, handler = logging.getLogger("turbort"), _Lines(progress)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _bars() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left", style="quiet"),
        TextColumn("{task.fields[memory]}", style="quiet", markup=False),
        console=ui.console(stderr=True),
        transient=True,
    )


def _memory(count: int | None) -> str:
    from turbort.units import format_bytes

    return "" if count is None else format_bytes(count)
