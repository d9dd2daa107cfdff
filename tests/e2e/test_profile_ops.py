"""`turbort run --profile-ops`: times, shares and bytes of every op, and a trace that can be opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from turbort.cli import app


def test_ops_are_accounted_for(little: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["run", "-m", str(little), "--profile", "cpu", "-p", "a red circle", "--steps", "1", "--profile-ops"]
    with pytest.raises(SystemExit) as ended:
        app([*args, "-o", str(tmp_path / "a.npy")], prog_name="turbort")
    assert not ended.value.code
    shown = capsys.readouterr().err
    assert "quantising" in shown
    assert "budget 15%" in shown
    ops = json.loads((tmp_path / "a.report.json").read_text())["ops"]
    rows = {(row["stage"], row["op"], row["precision"]): row for row in ops["ops"]}
    linear = rows["dit", "linear", "w8a8"]
    assert 0 < linear["quantise"] < linear["seconds"]
    assert rows["dit", "gelu_quant", "fp32"]["quantise"] >= 0
    assert rows["dit", "sla_attention", "fp32"]["quantise"] == 0
    assert 0 < ops["quantise_share"] < 1
    assert 0 < ops["attention_share"] < 1
    assert sum(row["share"] for row in ops["ops"] if row["stage"] == "dit") == pytest.approx(1, abs=0.01)
    # q, k and v read codes that their norm made; only the inputs of `o` are quantised apart and read once more.
    assert ops["bytes_moved"] > ops["bytes_needed"] > 0
    events = json.loads((tmp_path / "a.trace.json").read_text())["traceEvents"]
    assert sum(event["cat"] == "dit" for event in events) == sum(row["calls"] for row in ops["ops"] if row["stage"] == "dit")
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in events)
    assert ops["memory"][0][1] > 0
