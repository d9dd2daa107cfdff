"""The benchmark's isolated workers: a crash, a silence and a broken device cost one item each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cuda import workers

CHILD = """
import json, os, sys, time
for line in sys.stdin:
    for item in json.loads(line)["items"]:
        if item == "crash":
            print("last words", file=sys.stderr, flush=True)
            os._exit(9)
        if item == "hang":
            time.sleep(60)
        print(json.dumps({"name": item, "verdict": "ok", "poisoned": item == "poison", "pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fake_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(workers, "SILENCE", 1.5)
    return "fake_child"


def test_what_breaks_is_named_and_the_rest_still_runs(child: str) -> None:
    tasks = [{"items": ["a", "crash", "b", "poison", "c"]}, {"items": ["d", "hang", "e"]}]
    rows = {row["name"]: row for row in workers.Pool(child, 2, 1, 30).run(tasks)}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        **dict.fromkeys(("a", "b", "c", "d", "e", "poison"), "ok"),
        "crash": "lost",
        "hang": "lost",
    }
    assert rows["crash"]["error"] == "exit code 9: last words"
    assert rows["hang"]["error"] == "no answer"
    assert rows["b"]["pid"] == rows["poison"]["pid"] != rows["c"]["pid"]


def test_what_the_time_did_not_allow_is_not_run(child: str) -> None:
    rows = workers.Pool(child, 1, 1, 1.0).run([{"items": ["hang", "a"]}, {"items": ["b"]}])
    assert [row["verdict"] for row in rows] == ["not run"] * 3
