"""The command line in this process: exit code, stdout and stderr, in an empty working directory."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """`cli("run", "--prompt", "x")` runs the command in `tmp_path` with no setting of the environment in its way."""
    from turbort.cli import app

    for name in [*(name for name in os.environ if name.startswith("TURBORT_")), "FORCE_COLOR"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Ended:
        capsys.readouterr()
        try:
            app([str(arg) for arg in args], prog_name="turbort")
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        text = capsys.readouterr()
        return Ended(code, text.out, text.err)

    return run
