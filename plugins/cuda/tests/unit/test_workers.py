"""The benchmark's isolated workers: a crash, a silence and a broken device cost one item each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cuda import workers

PATIENCE = 120.0
"""Seconds that only a failing test waits."""
CHILD = """
import json, os, sys, time
for line in sys.stdin:
    for item in json.loads(line)["items"]:
        if item == "crash":
            print("last words", file=sys.stderr, flush=True)
            os._exit(9)
        if item == "hang":
            time.sleep(3600)
        print(json.dumps({"name": item, "verdict": "ok", "poisoned": item == "poison", "pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fake_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "fake_child"


def test_what_crashes_or_breaks_the_device_is_named_and_the_rest_still_runs(child: str) -> None:
    tasks = [{"items": ["a", "crash", "b", "poison", "c"]}, {"items": ["d", "e"]}]
    rows = {row["name"]: row for row in workers.Pool(child, 2, 1, PATIENCE).run(tasks)}
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {**dict.fromkeys(("a", "b", "c", "d", "e", "poison"), "ok"), "crash": "lost"}
    assert rows["crash"]["error"] == "exit code 9: last words"
    assert rows["b"]["pid"] == rows["poison"]["pid"] != rows["c"]["pid"]


def test_what_falls_silent_is_named_and_the_rest_still_runs(child: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has begun gets a moment for its answer; one that is starting, all the time that it needs."""
    monkeypatch.setattr(workers, "SILENCE", PATIENCE)

    def told(row: workers.Row) -> None:
        monkeypatch.setattr(workers, "SILENCE", 0.2 if row["name"] == "d" else PATIENCE)

    rows = {row["name"]: row for row in workers.Pool(child, 1, 1, PATIENCE, told).run([{"items": ["d", "hang", "e"]}])}
    assert {name: row["verdict"] for name, row in rows.items()} == {"d": "ok", "hang": "lost", "e": "ok"}
    assert rows["hang"]["error"] == "no answer"


def test_what_the_time_did_not_allow_is_not_run(child: str) -> None:
    rows = workers.Pool(child, 1, 1, 1.0).run([{"items": ["hang", "a"]}, {"items": ["b"]}])
    assert [row["verdict"] for row in rows] == ["not run"] * 3
