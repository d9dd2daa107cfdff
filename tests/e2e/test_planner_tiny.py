"""The planner on the embedded model's trained weights: both uniform choices lie above its frontier, and the video agrees."""

from __future__ import annotations

from dataclasses import replace
from time import thread_time

import numpy
import pytest

from turbort.assign import Problem
from turbort.calibrate.run import Subject, calibrate
from turbort.calibration import Calibration
from turbort.costs import Costs
from turbort.job import Job
from turbort.kernel_times import KernelTimes
from turbort.measure import measure
from turbort.models.spec import MODELS
from turbort.pareto import Beaten, Pareto, pareto
from turbort.plan import Plan
from turbort.planner import Planner, find_target, make_plan, recorded
from turbort.policy import Evidence
from turbort.profile import Profile, load_profile
from turbort.registry import Registry
from turbort.session import Session

SPEC = MODELS["tiny"]
JOB = Job("a red circle moves right", seed=5, frames=9, steps=1)

pytestmark = pytest.mark.skipif(not (SPEC.root or "") or not (SPEC.root / "dit.safetensors").is_file(), reason="no tiny weights")


def cpu(linear: str) -> Profile:
    profile = load_profile("cpu")
    same = profile.precision.linear.model_copy(update={"max": linear, "min": linear})
    return profile.model_copy(update={"precision": profile.precision.model_copy(update={"linear": same})})


def video(profile: Profile, plan: Plan | None = None) -> numpy.ndarray:
    with Session.open(SPEC, profile, plan=plan, jobs=[JOB]) as session:
        return session.generate([JOB])[0].frames.astype(numpy.float32) / 255


def psnr(a: numpy.ndarray, b: numpy.ndarray) -> float:
    return float(-10 * numpy.log10(max(numpy.square(a - b).mean(), 1e-12)))


def row(plane: Pareto, name: str) -> Beaten:
    return next(found for found in plane.uniform if found.uniform.name == f"uniform {name}")


@pytest.fixture(scope="module")
def made() -> Calibration:
    registry, profile = Registry(), cpu("w4a8")
    return calibrate(Subject(SPEC, profile, registry, find_target(profile, registry), SPEC.root), [JOB], links=())


@pytest.mark.parametrize("where", ["this machine, measured", "sm_90, roofline"])
def test_the_planner_beats_both_uniform_choices_on_the_error_time_plane(
    made: Calibration, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no more time than either choice it has less error; the videos of the plans for this machine say the same."""
    registry, profile = Registry(), cpu("w4a8")
    target = find_target(profile, registry)
    planner = Planner(profile, registry, target)
    sites = recorded(SPEC, profile, size=(128, 128), frames=9)
    fast_int8 = "vnni" in target.device.features
    measured = where.startswith("this")
    monkeypatch.setattr("turbort.measure.SECONDS", 0.03)
    # Kernels run in this thread alone, and its own time leaves out whatever else the machine does meanwhile.
    monkeypatch.setattr("turbort.measure.perf_counter", thread_time)
    times = KernelTimes(measure(planner, sites)) if measured else KernelTimes({})
    device = target.device if measured else replace(target.device, arch="sm_90")
    plane = pareto(Problem(planner, sites, made, Costs.of(device, (), "fp32", times)), made, made.error_for(28), float("inf"))
    exact = video(cpu("fp32")) if measured else None
    for name in ("w8a8", "w4a8"):
        beside = row(plane, name)
        print(f"{where}: {beside.row()}")
        assert beside.faster is not None
        assert beside.safer is not None
        assert beside.faster.ms <= beside.uniform.ms
        # Where INT8 is the fastest everywhere, nothing can be quicker than w8a8, and only free sites are better.
        assert beside.safer.error < (1.0 if fast_int8 else 0.9) * beside.uniform.error
        if exact is None:
            continue
        evidence = Evidence(made, times, error=beside.safer.error)
        plan = make_plan(SPEC, profile, registry, target=target, size=(128, 128), frames=9, evidence=evidence)
        ours, theirs = psnr(video(profile, plan), exact), psnr(video(cpu(name)), exact)
        print(f"video of the planner {ours:.1f} dB, of uniform {name} {theirs:.1f} dB")
        assert ours > theirs - 0.1
