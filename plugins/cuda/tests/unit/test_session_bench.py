"""The device session's jobs: one that has died costs itself only, and none begins when the session is gone."""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.cuda import __main__ as command
from benchmarks.cuda import workload
from benchmarks.cuda.session import _finish


def job(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


def test_jobs_end_by_themselves_or_at_their_limit() -> None:
    assert _finish(job("input()"), 20) == "done"
    assert _finish(job("import time; time.sleep(60)"), 0.5) == "stopped at 0 s"


def test_a_job_that_hears_nothing_any_more_is_stopped_at_its_limit_too() -> None:
    dead = job("raise SystemExit(3)")
    dead.wait()
    assert _finish(dead, 20) == "exit code 3"
    deaf = job("import os, time; os.close(0); print(flush=True); time.sleep(60)")
    assert deaf.stdin is not None
    deaf.stdin.close()
    deaf.stdin = SimpleNamespace(write=_broken)  # type: ignore[assignment]
    assert _finish(deaf, 0.5) == "stopped at 0 s"


def _broken(words: bytes) -> None:
    raise BrokenPipeError


@pytest.mark.parametrize(("heard", "measured"), [("go\n", 1), ("", 0)])
def test_a_waiting_job_begins_when_told_and_never_when_its_session_has_ended(
    heard: str, measured: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "IMPORTED", ())
    monkeypatch.setattr(sys, "stdin", io.StringIO(heard))
    calls: list[str] = []
    module = SimpleNamespace(run=lambda results, args: calls.append("ran"))
    args = argparse.Namespace(wait=True, rows=tmp_path / "x.rows", out=None)
    assert command._measure(module, "passes", args) is bool(measured)
    assert len(calls) == measured


def test_a_source_tree_without_entry_points_has_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turbort.registry.metadata.entry_points", lambda group: ())
    monkeypatch.delenv("TURBORT_PLUGINS", raising=False)
    assert "cuda" in workload.registry_here().backends
