"""Runs with scales shared along time: counted in the receipt, within every budget, for videos of any length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from turbort.errors import PlanError
from turbort.job import Job
from turbort.models.config import ModelSpec
from turbort.models.tiny import read_spec
from turbort.op import slots
from turbort.plan import Plan
from turbort.planner import make_plan
from turbort.profile import Profile, load_profile
from turbort.quant.qtensor import QTensor
from turbort.registry import Registry
from turbort.session import Session

JOB = Job("a red circle moves right", seed=3, steps=2)
QUANTISERS = {"norm1.op", "self_attn.o.op", "norm3.op", "cross_attn.o.op", "norm2.op", "ffn.gelu"}


@pytest.fixture(scope="module")
def spec(little: Path) -> ModelSpec:
    return read_spec(little / "model.yaml")


def profile(scales: str = "time", on_outlier: str = "promote") -> Profile:
    cpu = load_profile("cpu")
    precision = cpu.precision.model_copy(update={"activation_scales": scales})
    monitor = cpu.monitor.model_copy(update={"on_outlier": on_outlier})
    return cpu.model_copy(update={"precision": precision, "monitor": monitor})


def test_the_receipt_counts_the_passes(spec: ModelSpec) -> None:
    """Also with the outlier monitor on, which binds sites anew."""
    with Session.open(spec, profile(), jobs=[JOB]) as session:
        session.generate([JOB])
        rows = {(row["op"], row["provider"]): row for row in session.report()["executed"] if row["op"] == "quantize_time"}
    row = rows["quantize_time", "reference/reference"]
    assert (row["sites"], row["calls"], row["precision"]) == (6 * spec.dit.layers, 6 * spec.dit.layers * 2, "fp32")


def test_every_reader_gets_one_scale_a_place(spec: ModelSpec) -> None:
    seen: dict[str, torch.Tensor] = {}
    with Session.open(spec, profile(on_outlier="ignore"), jobs=[JOB]) as session:
        model = session.model("dit")
        assert {path.partition(".")[2].partition(".")[2] for path in model.tokens.quantisers} == QUANTISERS
        for path, slot in slots(model).items():
            if slot.op.name == "linear" and path.startswith("blocks."):

                def watch(x: object, *args: object, path: str = path, kept: object = slot.fn, **kwargs: object) -> object:
                    if isinstance(x, QTensor):
                        seen[path] = x.scales
                    return kept(x, *args, **kwargs)  # type: ignore[operator]

                slot.fn = watch
        session.generate([JOB])
    frames = 3
    assert len(seen) == spec.dit.layers * 6  # q, k, v, cross q, both of the FFN; the outputs quantise within
    for scales in seen.values():
        by_frame = scales.view(frames, -1)
        assert torch.equal(by_frame, by_frame[:1].expand_as(by_frame))
        assert by_frame.unique().numel() > 1


def test_one_binding_serves_videos_of_any_length(spec: ModelSpec) -> None:
    longer = replace(JOB, frames=17)
    with Session.open(spec, profile(on_outlier="ignore"), jobs=[JOB]) as session:
        both = session.generate([JOB, longer])
    with Session.open(spec, profile(on_outlier="ignore"), jobs=[longer]) as session:
        alone = session.generate([longer])[0]
    assert (both[1].frames == alone.frames).all()
    with Session.open(spec, profile("token", "ignore"), jobs=[longer]) as session:
        assert (session.generate([longer])[0].frames != alone.frames).any()


def test_verify_judges_it_by_a_reference_that_shares_too(spec: ModelSpec) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("cv2")
    from turbort.quality.verify import verify

    result = verify(spec, profile(), [JOB])
    assert result.passed, [number for number in result.numbers if number.passed is False]
    shared = [site for site in result.sites if site.choice.time_scales]
    assert len(shared) == 6 * spec.dit.layers
    assert all(site.nmse > 0 and site.worst <= 1.0 for site in shared)
    assert np.isfinite([clip.after.latent for clip in result.clips]).all()


def test_profiling_tells_the_passes_from_the_kernels(spec: ModelSpec) -> None:
    with Session.open(spec, profile(on_outlier="ignore"), jobs=[JOB], profile_ops=True) as session:
        session.generate([JOB])
        ops = session.report()["ops"]
    rows = {row["op"]: row for row in ops["ops"] if row["stage"] == "dit" and row["precision"] == "fp32"}
    assert rows["gelu_quant"]["quantise"] > 0
    assert "quantize_time" not in rows  # it is within the sites that it serves, and must not count twice


def test_a_plan_for_a_model_without_a_grid_is_refused(spec: ModelSpec) -> None:
    plan = make_plan(spec, profile(), Registry(), size=(64, 64), frames=9)
    wrong = tuple(
        replace(choice, time_scales="reference/reference") if choice.path.startswith("vae/") else choice for choice in plan
    )
    with pytest.raises(PlanError, match="without a grid of tokens"), Session.open(spec, profile(), plan=Plan(plan.header, wrong)):
        pass
