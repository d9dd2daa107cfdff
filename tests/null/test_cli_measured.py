"""Plan lines say what this machine has measured."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from turbort.cli import app, measured
from turbort.kernel_times import KernelTimes
from turbort.models.spec import get_model
from turbort.planner import make_plan
from turbort.profile import load_profile
from turbort.registry import Registry

SIZE = ["--size", "64x64", "--frames", "5"]


@pytest.fixture
def plan():
    return make_plan(get_model("tiny"), load_profile("h100"), Registry(), backend="null", size=(64, 64), frames=5)


def test_the_chosen_precision_stands_beside_the_compute_precision(plan) -> None:
    device = plan.header["backend"], plan.header["arch"]
    q = next(choice for choice in plan if choice.path.endswith("blocks.0.self_attn.q.op"))
    rows, width = q.shapes[0], q.shapes[1]
    shape = f"{int(rows.split('x')[0]) * int(rows.split('x')[1])}x{rows.split('x')[2]}x{width.split('x')[0]}"
    times = KernelTimes({(*device, "linear", q.precision, shape): 0.41, (*device, "linear", "bf16", shape): 0.63})
    found = measured.remarks(plan, times)
    assert found[q.path] == "measured 0.41 ms vs 0.63"
    assert not any(".ffn." in path for path in found)  # another size, not in the table
    assert measured.remarks(plan, KernelTimes({})) == {}


def test_the_table_of_this_machine_is_read(plan, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBORT_CACHE", str(tmp_path))
    sla = next(choice for choice in plan if choice.op == "sla_attention")
    batch, tokens, heads, width = sla.shapes[0].split("x")
    shape = f"{batch}x{tokens}x{tokens}x{heads}x{width}@{plan.header['attention']['topk']:g}"
    key = (plan.header["backend"], plan.header["arch"], "sla_attention", sla.precision, shape)
    (tmp_path / "kernel-times.json").write_text(KernelTimes({key: 1.25}).dumps())
    for more in ([], ["--sites"]):
        shown = CliRunner().invoke(app, ["plan", "--profile", "h100", "--on", "null", *SIZE, *more])
        assert shown.exit_code == 0
        assert "measured" in shown.stdout
        assert "1.25" in shown.stdout


def test_bench_needs_values() -> None:
    assert CliRunner().invoke(app, ["bench", "--on", "null", *SIZE]).exit_code == 2


def test_bench_prints_json() -> None:
    done = CliRunner().invoke(app, ["bench", "--on", "cpu", *SIZE, "--json"])
    found = json.loads(done.stdout)
    assert found["step_seconds"] > 0
    assert {"linear", "idle"} <= {row["class"] for row in found["classes"]}
