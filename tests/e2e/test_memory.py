"""The memory forecast against what the CPU really allocated, and the residencies it chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.test_real_models import JOB, Make, make, plain  # noqa: F401 - `make` is a fixture
from turbort.job import Job
from turbort.memory import Forecast, forecast, tiered
from turbort.memory_beside import sample_bytes
from turbort.memory_ladder import choose, ladder
from turbort.memory_sites import matrix_bytes
from turbort.memory_vae import vae_activations, vae_caches
from turbort.models.spec import MODELS
from turbort.models.tiny import read_spec
from turbort.output import decode
from turbort.plan import Plan
from turbort.planner import make_plan
from turbort.profile import Profile, load_profile
from turbort.registry import Registry
from turbort.session import Session
from turbort.units import parse_bytes


def peak(run: Callable[[], Any], file: Path) -> tuple[Any, int]:
    """The result, and the most bytes that torch's CPU allocator held beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    profile.export_chrome_trace(str(file))
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return result, most


@pytest.mark.parametrize("kind", ["float", "w8a8", "ti2v"])
def test_forecast_against_the_cpu(kind: str, make: Make, little: Path, tmp_path: Path) -> None:  # noqa: F811
    """Within 10 %, at a size where activations are far more than bookkeeping."""
    spec = make("ti2v") if kind == "ti2v" else read_spec(little / "model.yaml")
    profile = load_profile("cpu") if kind == "w8a8" else plain()
    job = Job(JOB.prompt, width=256, height=256, frames=13)
    with Session.open(spec, profile, jobs=[job]) as session, torch.inference_mode():
        full = job.resolved(spec)
        texts = session._embed([full], lambda event: None)
        stage = session.memory.stage("sample")
        latents, measured = peak(lambda: session._sample([(0, full)], texts, lambda event: None), tmp_path / "trace.json")
        # numpy makes the rotation's tables, so torch's allocator does not see them.
        model = session._experts.get(session._experts.roles[0]).model
        measured += sum(table.nbytes for tables in model._rope.values() for table in tables)
        kept = stage.kept - sample_bytes(session.plan, profile)  # the monitor's, which were there before
        assert (kept + stage.activations) / measured == pytest.approx(1.0, abs=0.1)
        for chunk in {"float": (1, 4), "ti2v": (1, 2)}.get(kind, ()):
            run = partial(decode, session._pixels.vae, latents, full, chunk, lambda *_: None)
            video, measured = peak(run, tmp_path / "t.json")
            # The frames of a job that names no file are kept on the host, which here is the device; the forecast is the device's.
            measured -= video[1].nbytes
            predicted = vae_caches(session.plan) + vae_activations(session.plan, chunk, latents.shape[2])
            assert predicted / measured == pytest.approx(1.0, abs=0.1), chunk


@pytest.fixture(scope="module")
def planned() -> Callable[[str, str], tuple[Plan, Profile]]:
    made: dict[tuple[str, str], tuple[Plan, Profile]] = {}

    def plan(model: str, name: str) -> tuple[Plan, Profile]:
        if (model, name) not in made:
            profile = load_profile(name)
            made[model, name] = make_plan(MODELS[model], profile, Registry(), backend="null"), profile
        return made[model, name]

    return plan


Planned = Callable[[str, str], tuple[Plan, Profile]]


def test_weights_are_counted_to_the_byte() -> None:
    assert matrix_bytes((256, 384), "bf16") == 2 * 256 * 384
    assert matrix_bytes((256, 384), "w8a8") == 256 * 384 + 4 * 256
    assert matrix_bytes((256, 384), "w8a8-block128") == 256 * 384 + 4 * 2 * 3
    assert matrix_bytes((256, 384), "w4a8") == 256 * 384 // 2 + 4 * 256 * 3
    assert matrix_bytes((256, 384), "w4a8", "reference/linear") == 256 * 384 + 4 * 256 * 3


@pytest.mark.parametrize(
    ("model", "budget"), [("wan2.1-t2v-1.3b", "8GiB"), ("wan2.1-t2v-14b", "24GiB"), ("wan2.2-t2v-a14b", "24GiB")]
)
def test_the_issue_s_budgets_have_a_way(model: str, budget: str, planned: Planned) -> None:
    plan, profile = planned(model, "rtx4090")
    found = choose(plan, MODELS[model], profile, parse_bytes(budget))
    assert found.fits
    assert found.residency.offload is False
    assert found.residency.experts == ("swap" if MODELS[model].experts else "all")


def test_savings_that_a_later_one_made_needless_are_taken_back(planned: Planned) -> None:
    """A 14B model in 12 GiB needs its blocks streamed; then the VAE has room for whole frames."""
    plan, profile = planned("wan2.1-t2v-14b", "rtx4090")
    found = choose(plan, MODELS["wan2.1-t2v-14b"], profile, parse_bytes("12GiB")).residency
    assert (found.offload, found.tile) == (True, None)


def test_every_step_down_needs_no_more_than_the_one_before(planned: Planned) -> None:
    plan, profile = planned("wan2.2-t2v-a14b", "rtx4090")
    spec = MODELS["wan2.2-t2v-a14b"]
    rows = [forecast(plan, spec, profile, row) for row in ladder(plan, spec, profile)]
    assert [row.peak for row in rows] == sorted((row.peak for row in rows), reverse=True)
    assert rows[-1].residency.offload
    assert all(forecast_at(plan, profile, row.needed).needed <= row.needed for row in rows)


def forecast_at(plan: Plan, profile: Profile, budget: int) -> Forecast:
    return choose(plan, MODELS["wan2.2-t2v-a14b"], profile, budget)


def test_a_profile_can_forbid_leaving_the_device(planned: Planned) -> None:
    plan, profile = planned("wan2.1-t2v-14b", "rtx4090")
    still = profile.model_copy(update={"memory": profile.memory.model_copy(update={"offload": "none"})})
    rows = ladder(plan, MODELS["wan2.1-t2v-14b"], still)
    assert all((row.text, row.offload) == ("freed", False) for row in rows)


def test_weights_are_quantised_below_the_tier_boundary() -> None:
    profile = load_profile("rtx4090")
    linear = profile.precision.linear.model_copy(update={"max": "bf16", "min": "bf16"})
    wide = profile.model_copy(update={
        "precision": profile.precision.model_copy(update={"linear": linear}),
        "memory": profile.memory.model_copy(update={"tier_boundary": 40 * 2**30}),
    })  # fmt: skip
    assert tiered(wide, 24 * 2**30).precision.linear_name == "w8a8"
    assert tiered(wide, 80 * 2**30) is wide
    assert tiered(wide, None) is wide
    assert tiered(profile, 24 * 2**30).precision.linear_name == profile.precision.linear_name
