"""Plans fold, unfold, survive a round trip, and refuse what is not a plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbort.errors import PlanError
from turbort.plan import Choice, Plan, fold, unfold

HEADER = {"model": "tiny", "profile": "cpu", "backend": "reference"}


def site(path: str, **changes: object) -> Choice:
    values: dict[str, object] = {
        "op": "linear",
        "role": "ffn.in",
        "precision": "w8a8",
        "kernel": "reference/reference",
        "shapes": ("1x576x256",),
    }
    return Choice(path=path, **{**values, **changes})  # type: ignore[arg-type]


def test_equal_blocks_share_one_line() -> None:
    plan = Plan(HEADER, tuple(site(f"dit/blocks.{i}.ffn.0.op") for i in range(30)))
    assert [row["path"] for row in plan.rows()] == ["dit/blocks.{0-29}.ffn.0.op"]
    assert plan.rows()[0]["sites"] == 30


def test_a_different_block_stands_out_in_the_diff() -> None:
    base = Plan(HEADER, tuple(site(f"dit/blocks.{i}.ffn.0.op") for i in range(4)))
    other = Plan(HEADER, (*base.choices[:3], site("dit/blocks.3.ffn.0.op", precision="bf16", note="override")))
    diff = base.diff(other)
    assert "-  dit/blocks.{0-3}.ffn.0.op" in diff
    assert "+  dit/blocks.{0-2}.ffn.0.op" in diff
    assert "override" in diff
    assert base.diff(base) == ""


numbers = st.lists(st.integers(0, 200), min_size=1, max_size=30, unique=True).map(sorted)


@given(
    numbers, st.sampled_from(["bf16", "w8a8"]), st.dictionaries(st.sampled_from(["a/x", "b/y"]), st.text(max_size=20), max_size=2)
)
def test_round_trip(blocks: list[int], precision: str, passed_over: dict[str, str]) -> None:
    choices = [site(f"dit/blocks.{i}.q.op", precision=precision, passed_over=passed_over) for i in blocks]
    plan = Plan(HEADER, (*choices, site("dit/head.op", emit="int8-token", fallback=True)))
    back = Plan.loads(plan.dumps())
    assert back == plan
    assert back.digest == plan.digest


@given(numbers)
def test_unfold_is_the_inverse_of_fold(blocks: list[int]) -> None:
    paths = [f"dit/blocks.{i}.q.op" for i in blocks]
    ((key, count, _),) = fold([site(path) for path in paths])
    assert unfold(key) == paths
    assert count == len(paths)


@pytest.mark.parametrize(
    "text", ["", "- 1", "plan: 2\nsites: {}", "plan: 1\nsites: {a: {op: x}}", "plan: [", "plan: 1\nsites: {a: 3}", "\x00"]
)
def test_what_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.loads(text, "x.yaml")
    assert "fix:" in str(caught.value)
    assert caught.value.exit_code == 2
