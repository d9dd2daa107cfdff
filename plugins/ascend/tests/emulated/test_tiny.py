"""The embedded model on emulated `npu:0`: the judge that scores tiny-shapes clips sees what it sees in the CPU's clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from turbort.job import Job
from turbort.models.tiny import ASSETS

PROMPTS = ("a red circle moves right", "a blue square grows")


@pytest.fixture(scope="module")
def clips(registry: Any) -> dict[str, list[Any]]:
    if not (ASSETS / "dit.safetensors").is_file():
        pytest.skip(f"the embedded model's weights are not in {ASSETS.name}")
    pytest.importorskip("recipes.tiny_shapes.oracle", reason="the judge of tiny-shapes needs its own packages")
    from turbort.models.spec import get_model
    from turbort.profile import load_profile
    from turbort.session import Session

    made = {}
    jobs = [replace(Job(prompt), seed=number) for number, prompt in enumerate(PROMPTS)]
    for on in ("cpu", "ascend"):
        with Session.open(get_model("tiny"), load_profile("ascend910"), registry=registry, on=on, jobs=jobs) as session:
            made[on] = [result.frames for result in session.generate(jobs)]
    return made


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_the_judge_sees_the_same_objects(clips: dict[str, list[Any]], number: int) -> None:
    from recipes.tiny_shapes.oracle import detect

    def seen(on: str) -> list[tuple[str, str, str]]:
        return [(found.color, found.shape, found.motion) for found in detect(clips[on][number])]

    assert seen("ascend") == seen("cpu")
    assert seen("cpu"), "the judge sees nothing at all"
