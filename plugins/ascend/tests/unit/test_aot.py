"""What `turbort compile` finds in a plan for chips that are not here; compiling itself needs the vendor's packages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed; its front end names the kernels' arguments")

from turbort_ascend import aot, lowering

from turbort.errors import UnavailableError
from turbort.models.spec import MODELS, Sla
from turbort.planner import find_target, make_plan, recorded
from turbort.profile import load_profile
from turbort.registry import Registry


@pytest.mark.parametrize("sla", [None, Sla(0.1, (64, 128))])
def test_the_launches_of_a_plan_have_the_types_that_the_vendors_compiler_takes(sla: Sla | None) -> None:
    """The types and tiles are those of tests/kernels/cases.py, which `make ascend-kernels` compiles."""
    spec = replace(MODELS["tiny"], dit=replace(MODELS["tiny"].dit, sla=sla))
    registry, profile = Registry(), load_profile("ascend910")
    target = find_target(profile, registry, absent=True)
    plan = make_plan(spec, profile, registry, target=target, size=(64, 64), frames=5)
    found = aot.launched(plan, recorded(spec, profile, size=(64, 64), frames=5), registry)
    types = {"q": "*i8", "k": "*i8", "v": "*bf16", "q_scales": "*fp32", "k_scales": "*fp32"}
    sizes = {"LQ": "i32", "LK": "i32"}
    if sla is None:
        want = lowering.Source(
            "int8_attention", {**types, "out": "*bf16", **sizes, "scale": "fp32"}, {"D": 128, "TILE_Q": 128, "TILE_K": 64}
        )
    else:
        types |= {"chosen": "*i32", "out": "*bf16", **sizes, "CHOSEN": "i32", "scale": "fp32"}
        want = lowering.Source("int8_sparse_attention", types, {"D": 128, "TILE_Q": 64, "TILE_K": 128})
    assert found == [want]


def test_without_the_vendors_compiler_the_way_to_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "missing_compiler", lambda: "triton-ascend is not installed")
    registry, profile = Registry(), load_profile("ascend910")
    target = find_target(profile, registry, absent=True)
    plan = make_plan(MODELS["tiny"], profile, registry, target=target, size=(64, 64), frames=5)
    with pytest.raises(UnavailableError, match="triton-ascend") as caught:
        aot.compile_plan(plan, [], registry, tmp_path, ["*"])
    assert "make ascend-ir-venv" in str(caught.value)


def test_a_stand_in_is_of_the_profiles_chip_and_says_that_it_is_not_here() -> None:
    target = find_target(load_profile("ascend310p"), Registry(), absent=True)
    assert target.device.arch == "Ascend310P3"
    assert "not on this machine" in target.device.name
