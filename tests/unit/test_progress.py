"""What a person sees while a run works."""

import io
import logging

from rich.console import Console
from rich.theme import Theme

from turbort.cli import progress, ui


def test_what_a_backend_logs_is_shown_while_the_bars_are(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, theme=Theme(ui.STYLES))
    monkeypatch.setattr(ui, "interactive", lambda: True)
    monkeypatch.setattr(ui, "console", lambda *, stderr=False: console)
    log = logging.getLogger("turbort")
    before = log.level, list(log.handlers)
    with progress.Display():
        log.info("compiling the step for %s", "2x16x3x16x16")
    log.info("afterwards")
    assert "compiling the step for 2x16x3x16x16" in screen.getvalue()
    assert "afterwards" not in screen.getvalue()
    assert (log.level, log.handlers) == before
