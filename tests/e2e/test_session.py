"""From a prompt to frames on the CPU, through the path that every model takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbort.errors import CheckpointError
from turbort.job import Event, Job
from turbort.models.config import ModelSpec
from turbort.models.tiny import read_spec
from turbort.plan import Plan
from turbort.profile import Profile, load_profile
from turbort.session import Session


@pytest.fixture(scope="module")
def spec(little: Path) -> ModelSpec:
    return read_spec(little / "model.yaml")


def made(
    spec: ModelSpec, jobs: list[Job], profile: Profile | None = None, **options: Any
) -> tuple[list[np.ndarray], dict[str, Any]]:
    with Session.open(spec, profile or load_profile("cpu"), jobs=jobs, **options) as session:
        results = session.generate(jobs)
        return [result.frames for result in results], session.report()


JOB = Job("a red circle moves right", seed=3)


def test_a_seed_means_the_same_bytes(spec: ModelSpec) -> None:
    (first, other), _ = made(spec, [JOB, replace(JOB, seed=4)])
    (again,), _ = made(spec, [JOB])
    assert first.shape == (9, 64, 64, 3)
    assert first.dtype == np.uint8
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    assert first.std() > 1  # not a flat picture


def test_the_prompt_reaches_the_pixels(spec: ModelSpec) -> None:
    (first, other), _ = made(spec, [JOB, replace(JOB, prompt="a blue star moves left")])
    assert first.tobytes() != other.tobytes()


def test_a_job_does_not_depend_on_its_batch(spec: ModelSpec) -> None:
    cpu = load_profile("cpu")
    together = cpu.model_copy(
        update={"batch": cpu.batch.model_copy(update={"mode": "dynamic", "size": None, "min": 1, "max": 3})}
    )
    jobs = [replace(JOB, seed=seed) for seed in (3, 4, 5)]
    batched, report = made(spec, jobs, together)
    alone = [made(spec, [job])[0][0] for job in jobs]
    assert report["plan"]["batch"] == 3
    for one, many in zip(alone, batched, strict=True):
        # Kernels may add in another order for another batch size: at most one level of 255.
        assert np.abs(one.astype(int) - many.astype(int)).max() <= 1


def test_the_receipt_counts_what_ran(spec: ModelSpec) -> None:
    _, report = made(spec, [JOB])
    rows = {(row["stage"], row["op"], row["precision"]): row for row in report["executed"]}
    attention = rows["dit", "sla_attention", "fp32"]
    assert (attention["sites"], attention["calls"]) == (2, 2 * 4)  # blocks, blocks x steps
    assert rows["dit", "linear", "w8a8"]["sites"] == 2 * 10
    assert report["fallbacks"] == []
    assert {"load", "text", "sample", "decode"} <= set(report["seconds"])


def test_a_run_that_stayed_wide_shows_it(spec: ModelSpec) -> None:
    """An override turns the quantised linears off; the receipt, which counts executions, must not claim w8a8."""
    cpu = load_profile("cpu")
    wide = cpu.model_copy(update={"precision": cpu.precision.model_copy(update={"overrides": {"blocks.*": "fp32"}})})
    _, report = made(spec, [JOB], wide)
    assert "w8a8" not in {row["precision"] for row in report["executed"]}


def test_a_saved_plan_replays_to_the_same_bytes(spec: ModelSpec) -> None:
    profile = load_profile("cpu")
    with Session.open(spec, profile, jobs=[JOB]) as session:
        text = session.plan.dumps()
        first = session.generate([JOB])[0].frames
    (again,), report = made(spec, [JOB], plan=Plan.loads(text))
    assert again.tobytes() == first.tobytes()
    assert report["plan"]["digest"] == Plan.loads(text).digest


@pytest.mark.parametrize("name", ["h100", "ascend910", "ascend310p", "tpu-v5e"])
def test_other_platforms_can_be_rehearsed(spec: ModelSpec, name: str) -> None:
    (frames,), report = made(spec, [JOB], load_profile(name), on="cpu")
    assert report["plan"]["rehearsal"] is True
    assert report["device"]["backend"] == "reference"
    assert frames.std() > 1


def test_guidance_runs_two_passes_and_heeds_the_negative_prompt(spec: ModelSpec) -> None:
    euler = replace(spec, sampler="euler")
    (first, other), report = made(euler, [JOB, replace(JOB, negative_prompt="a blue star")])
    assert first.tobytes() != other.tobytes()
    sla = next(row for row in report["executed"] if row["op"] == "sla_attention")
    assert sla["calls"] == 2 * 3 * 2 * 2  # blocks x steps x passes x jobs


def test_progress_is_told_stage_by_stage(spec: ModelSpec, tmp_path: Path) -> None:
    events: list[Event] = []
    job = replace(JOB, out=tmp_path / "x.mp4")
    with Session.open(spec, load_profile("cpu"), jobs=[job], on_event=events.append) as session:
        (result,) = session.generate([job], events.append)
    assert list(dict.fromkeys(event.stage for event in events)) == ["plan", "load", "text", "sample", "decode", "write"]
    assert [event.step for event in events if event.stage == "sample"] == [1, 2, 3, 4]
    assert result.path == tmp_path / "x.mp4"
    assert result.path.stat().st_size > 500


def test_stopping_between_steps_leaves_no_file(spec: ModelSpec, tmp_path: Path) -> None:
    job = replace(JOB, out=tmp_path / "x.mp4")

    def stop(event: Event) -> None:
        if (event.stage, event.step) == ("decode", 1):
            raise KeyboardInterrupt

    with Session.open(spec, load_profile("cpu"), jobs=[job]) as session, pytest.raises(KeyboardInterrupt):
        session.generate([job], stop)
    assert list(tmp_path.iterdir()) == []


def test_missing_tensors_are_named_before_anything_is_made(spec: ModelSpec, little: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(little / "dit.safetensors")
    del weights["blocks.1.ffn.0.weight"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for source in ("vae.safetensors", "tokenizer.json", "text_encoder"):
        (broken / source).symlink_to(little / source)
    save_file(weights, broken / "dit.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ffn\.0\.weight"):
        Session.open(spec, load_profile("cpu"), jobs=[JOB], root=broken)
