"""Strength levels in a small model: chosen by what the first step predicts, logged, replayed, and planned from a calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbort.calibrate.run import Subject, calibrate
from turbort.calibration import Calibration
from turbort.guard.levels import LEAST_VIDEOS, make_levelled_plan
from turbort.guard.policy import Policy
from turbort.guard.strength import Strengths
from turbort.job import Job
from turbort.kernel_times import KernelTimes
from turbort.models.config import ModelSpec
from turbort.models.tiny import read_spec
from turbort.planner import find_target
from turbort.policy import Evidence
from turbort.profile import Profile, load_profile
from turbort.registry import Registry
from turbort.session import Session

JOBS = [Job("a red circle moves right", seed=1), Job("a blue star rotates", seed=2)]


@pytest.fixture(scope="module")
def spec(little: Path) -> ModelSpec:
    return read_spec(little / "model.yaml")


def profile(on_outlier: str = "ignore", **adaptive: Any) -> Profile:
    cpu = load_profile("cpu")
    wish = cpu.adaptive.model_copy(update={"enabled": True, **adaptive})
    monitor = cpu.monitor.model_copy(update={"on_outlier": on_outlier})
    return cpu.model_copy(update={"adaptive": wish, "monitor": monitor})


def made(spec: ModelSpec, chosen: Profile, **options: Any) -> tuple[list[Any], dict[str, Any], Policy]:
    with Session.open(spec, chosen, jobs=JOBS, **options) as session:
        return [result.frames for result in session.generate(JOBS)], session.report(), session.policy()


def levels(report: dict[str, Any]) -> list[list[int]]:
    return [[row["level"] for row in video["steps"]] for video in report["adaptive"]["videos"]]


def between(spec: ModelSpec, signal: str) -> float:
    """A threshold that tells the two jobs apart."""
    _, report, _ = made(spec, profile(signal=signal, hard="high", thresholds=(0.0,)))
    first, second = (video["steps"][0][signal][0] for video in report["adaptive"]["videos"])
    assert first != second
    return float(first + second) / 2


@pytest.mark.parametrize("signal", ["motion", "error"])
@pytest.mark.parametrize("on_outlier", ["ignore", "promote"])
def test_clips_run_at_different_levels_and_replay_to_the_same_bytes(
    spec: ModelSpec, signal: str, on_outlier: str, tmp_path: Path
) -> None:
    chosen = profile(on_outlier, signal=signal, hard="high", thresholds=(between(spec, signal),))
    frames, report, policy = made(spec, chosen)
    # Comparing levels has both results of the first step, so it chooses between them, too.
    assert sorted(levels(report)) == [[int(signal != "error"), 0, 0, 0], [1, 1, 1, 1]]
    assert [video["prompts"] for video in report["adaptive"]["videos"]] == [[job.prompt] for job in JOBS]
    (tmp_path / "p.yaml").write_text(policy.dumps())
    again, replayed, _ = made(spec, chosen, policy=Policy.load(tmp_path / "p.yaml"))
    assert [a.tobytes() for a in again] == [b.tobytes() for b in frames]
    assert replayed["monitor"]["mode"] == "replay"


def test_the_receipt_counts_both_kernels(spec: ModelSpec) -> None:
    _, report, _ = made(spec, profile(signal="motion", hard="high", thresholds=(between(spec, "motion"),)))
    sites = len(report["adaptive"]["levels"][1]["promoted"])
    calls = {row["precision"]: row["calls"] for row in report["executed"] if row["stage"] == "dit" and row["op"] == "linear"}
    assert sites > 0
    # One video has one strong step and three weak ones, the other four strong ones. Keys and values of texts have no twin.
    linears, texts = 2 * 8, 2 * 2
    assert calls["w8a8"] == 3 * linears + len(JOBS) * texts
    assert calls["fp32"] > 5 * linears
    assert not report["unmet"]


def test_the_outermost_levels_are_the_plan_and_every_second_kernel(spec: ModelSpec) -> None:
    off = made(spec, load_profile("cpu").model_copy(update={"monitor": profile().monitor}))[0]
    always_low = {"signal": "motion", "hard": "high", "thresholds": (1e9,), "begin": "low"}
    frames, report, _ = made(spec, profile(**always_low))
    assert levels(report) == [[0] * 4] * 2
    assert [a.tobytes() for a in frames] == [b.tobytes() for b in off]
    strong = made(spec, profile(**{**always_low, "thresholds": (0.0,), "begin": "high"}))
    assert levels(strong[1]) == [[1] * 4] * 2
    assert any(a.tobytes() != b.tobytes() for a, b in zip(strong[0], off, strict=True))


def test_without_calibration_or_thresholds_the_plan_runs_as_it_is_and_says_so(spec: ModelSpec) -> None:
    _, report, _ = made(spec, profile())
    assert report["adaptive"]["enabled"] is False
    assert "there are 0" in report["adaptive"]["note"]


@pytest.fixture(scope="module")
def calibration(spec: ModelSpec, little: Path) -> Calibration:
    registry, cpu = Registry(), load_profile("cpu")
    subject = Subject(spec, cpu, registry, find_target(cpu, registry), little)
    jobs = [Job(f"a red circle {number}", seed=number, frames=5) for number in range(LEAST_VIDEOS)]
    return calibrate(subject, jobs, linears=("w8a8",), links=("w8a8",), every_link=True)


def planned(spec: ModelSpec, chosen: Profile, made: Calibration) -> Strengths:
    registry = Registry()
    plan = make_levelled_plan(spec, chosen, registry, evidence=Evidence(made, KernelTimes({})), frames=5)
    found = Strengths.of(plan.header)
    assert found is not None
    return found


def test_calibration_records_signals_and_the_plan_cuts_them_at_quantiles(spec: ModelSpec, calibration: Calibration) -> None:
    assert Calibration.loads(calibration.dumps()) == calibration
    assert len(calibration.videos) == LEAST_VIDEOS
    assert all(len(video.looks) == 4 and video.mse["w8a8"] > 0 < video.first["w8a8"] for video in calibration.videos)
    gradients = sorted(video.looks[0].gradient for video in calibration.videos)
    found = planned(spec, profile(signal="gradient", hard="low", quantiles=(0.25,)), calibration)
    assert sum(value > found.cuts[0].at[0] for value in gradients) == LEAST_VIDEOS // 4
    assert len(found.levels) == 2


def test_levels_are_knapsacks_at_their_own_bound(spec: ModelSpec, calibration: Calibration) -> None:
    """More dB asked, more sites promoted, more time and less error predicted."""
    whole = sum(site.felt("w8a8") for site in calibration.sites.values())
    least, most = (calibration.psnr_at(factor * whole) for factor in (1, 0.25))
    wish = {"signal": "gradient", "hard": "low", "levels": (least - 1, (least + most) / 2, most), "quantiles": (0.3, 0.7)}
    rows = planned(spec, profile(**wish), calibration).levels
    assert [len(row.promoted) for row in rows] == sorted({len(row.promoted) for row in rows})
    for row, wanted in zip(rows, wish["levels"], strict=True):
        assert row.psnr is not None
        assert row.psnr >= wanted - 0.01
    assert np.all(np.diff([row.ms or 0.0 for row in rows]) > 0)
    assert np.all(np.diff([row.error or 0.0 for row in rows]) < 0)


def test_a_signal_that_says_nothing_is_not_followed(spec: ModelSpec, calibration: Calibration) -> None:
    from dataclasses import replace

    # Errors that zigzag over the order of the gradients have a rank correlation near zero.
    order = sorted(range(LEAST_VIDEOS), key=lambda i: calibration.videos[i].looks[0].gradient)
    zigzag = {number: 1e-4 * (1 + (place * 3) % LEAST_VIDEOS) for place, number in enumerate(order)}
    videos = tuple(replace(video, mse={"w8a8": zigzag[i]}) for i, video in enumerate(calibration.videos))
    found = planned(spec, profile(signal="gradient"), replace(calibration, videos=videos))
    assert not found.works
    assert "does not tell hard videos from easy ones" in found.note
    assert planned(spec, profile(signal="gradient", hard="low"), replace(calibration, videos=videos)).works


def test_the_page_shows_each_steps_level(spec: ModelSpec) -> None:
    from turbort.quality.page import page

    _, report, _ = made(spec, profile(signal="error", hard="high", thresholds=(0.0,)))
    text = page(report)
    assert "<h2>Strength levels</h2>" in text
    assert text.count(f"<td>{JOBS[0].prompt}</td>") == 4
    assert "there are 0" in page(made(spec, profile())[1])
