"""Calibration of a whole model on the CPU, and plans that rest on it: predictions against what really happens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from turbort.assign import Problem
from turbort.calibrate.run import Subject, calibrate, predicted
from turbort.calibration import Calibration
from turbort.costs import Costs
from turbort.errors import InputError, PlanError
from turbort.job import Job
from turbort.kernel_times import KernelTimes
from turbort.models.tiny import read_spec
from turbort.pareto import pareto
from turbort.planner import Planner, find_target, make_plan, recorded
from turbort.policy import Evidence
from turbort.profile import Profile, load_profile
from turbort.registry import Registry
from turbort.session import Session

JOB = Job("a red circle moves right", seed=3)
NONE = KernelTimes({})


def cpu(least: str = "w4a8", **changes: object) -> Profile:
    profile = load_profile("cpu")
    linear = profile.precision.linear.model_copy(update={"max": "w8a8", "min": least})
    precision = profile.precision.model_copy(update={"linear": linear, **changes})
    return profile.model_copy(update={"precision": precision})


@pytest.fixture(scope="module")
def made(little: Path) -> Calibration:
    spec, registry = read_spec(little / "model.yaml"), Registry()
    subject = Subject(spec, cpu(), registry, find_target(cpu(), registry), little)
    return calibrate(subject, [JOB])


def spec_of(little: Path):
    return read_spec(little / "model.yaml")


def test_every_site_of_the_transformer_is_there_at_every_step(made: Calibration) -> None:
    linear = made.sites["dit/blocks.1.ffn.2.op"]
    assert sorted(linear.steps) == [0, 1, 2, 3]
    assert set(linear.precisions) == {"w8a8", "w8a8-block128", "fp8", "w4a8", "w4a16"}
    assert made.sites["dit/blocks.0.self_attn.attention"].precisions == ("int8", "int8-fp8")
    assert made.sites["dit/head.head.op"].precisions == ()
    assert made.sites["dit/head.head.op"].seen.count > 0
    assert all(site.seen.count > 0 for site in made.sites.values())
    errors = [linear.nmse(name) for name in ("w8a8", "fp8", "w4a8")]
    assert errors == sorted(errors)


def test_the_predicted_error_is_the_error_that_happens(made: Calibration, little: Path) -> None:
    """All linears at one precision, velocity against the unquantised velocity at the same state: within a factor of two."""
    for precision in ("w8a8", "w4a8"):
        seen = [velocities(little, name) for name in ("fp32", precision)]
        error = float((seen[1] - seen[0]).square().sum() / seen[0].square().sum())
        assert 0.5 < predicted(made, precision) / error < 2, precision


def velocities(little: Path, linear: str) -> torch.Tensor:
    """The model's first output for JOB with all block linears at one precision."""
    found: list[torch.Tensor] = []
    spec = spec_of(little)
    words = {"linear": cpu().precision.linear.model_copy(update={"max": linear, "min": linear})}
    with Session.open(spec, cpu(**words), jobs=[JOB], root=little) as session:
        expert = session._experts.get("dit")
        step = expert.step

        def watched(*args: object, **kwargs: object) -> torch.Tensor:
            found.append(step(*args, **kwargs))
            return found[-1]

        expert.step = watched
        session.generate([replace(JOB, steps=1)])
    return found[0].float()


KNOWN: dict[tuple[Path, str], object] = {}


def frames(little: Path, plan=None, linear: str = "fp32"):
    """Frames in [0, 1] and the receipt; videos of uniform precisions are made once."""
    if plan is not None:
        return _frames(little, plan, linear)
    if (little, linear) not in KNOWN:
        KNOWN[little, linear] = _frames(little, None, linear)
    return KNOWN[little, linear]


def _frames(little: Path, plan, linear: str):
    words = {"linear": cpu().precision.linear.model_copy(update={"max": linear, "min": linear})}
    with Session.open(spec_of(little), cpu(**words), plan=plan, jobs=[JOB], root=little) as session:
        return session.generate([JOB])[0].frames.astype(numpy.float32) / 255, session.report()


def psnr(a, b) -> float:
    return float(-10 * numpy.log10(max(numpy.square(a - b).mean(), 1e-12)))


@pytest.mark.parametrize("uniform", ["w8a8", "w4a8"])
def test_the_planner_beats_uniform_precisions_on_the_plane_and_in_the_video(
    made: Calibration, little: Path, uniform: str
) -> None:
    """Times from the roofline of a CPU with int8 instructions; errors predicted, then seen in the video itself."""
    spec, registry, profile = spec_of(little), Registry(), cpu()
    target = find_target(profile, registry)
    planner = Planner(profile, registry, target)
    sites = recorded(spec, profile, size=(64, 64), frames=9)
    problem = Problem(planner, sites, made, Costs.of(target.device, ("x86_64",), "fp32", NONE))
    plane = pareto(problem, made, made.error_for(profile.quality.psnr), float("inf"))
    row = next(row for row in plane.uniform if row.uniform.name == f"uniform {uniform}")
    assert row.faster is not None
    assert row.safer is not None
    assert row.faster.ms < 0.985 * row.uniform.ms
    assert row.faster.error <= row.uniform.error
    assert row.safer.error < 0.7 * row.uniform.error
    assert row.safer.ms <= row.uniform.ms
    plan = make_plan(spec, profile, registry, target=target, evidence=Evidence(made, NONE, error=row.safer.error))
    exact, _ = frames(little)
    ours, report = frames(little, plan)
    theirs, _ = frames(little, linear=uniform)
    assert psnr(ours, exact) > psnr(theirs, exact) + 1.0
    assert {r["precision"] for r in report["executed"] if r["op"] == "linear" and r["stage"] == "dit"} > {"fp32"}


def test_links_come_from_videos(made: Calibration, little: Path) -> None:
    exact, _ = frames(little)
    theirs, _ = frames(little, linear="w4a8")
    link = next(row for row in made.links if row.precision == "w4a8")
    assert link.psnr == pytest.approx(psnr(theirs, exact), abs=0.01)
    assert made.psnr_at(link.predicted) == pytest.approx(link.psnr)


def test_a_plan_says_what_it_rests_on_and_refuses_other_weights(made: Calibration, little: Path) -> None:
    spec, registry = spec_of(little), Registry()
    plan = make_plan(spec, cpu(), registry, evidence=Evidence(made, NONE))
    assert plan.header["policy"] == "budget"
    assert plan.header["calibration"] == {"digest": made.digest, "checkpoints": dict(made.header["checkpoints"])}
    assert plan.header["predicted"]["psnr"] >= 28
    assert "roofline" in (plan["dit/blocks.0.ffn.0.op"].note or "")
    other = plan.with_header(calibration={"digest": "x", "checkpoints": {"dit": "sha256:other"}})
    with pytest.raises(PlanError, match="other weights"):
        frames(little, other)


def test_quality_and_floor_bound_the_choice(made: Calibration, little: Path) -> None:
    spec, registry = spec_of(little), Registry()

    def precisions(profile: Profile, **more: object) -> set[str]:
        plan = make_plan(spec, profile, registry, evidence=Evidence(made, NONE, **more))
        return {choice.precision for choice in plan if choice.path.startswith("dit/blocks") and choice.op == "linear"}

    assert "w4a8" in precisions(cpu())
    assert "w4a8" not in precisions(cpu("w8a8"))
    strict = cpu().model_copy(update={"quality": cpu().quality.model_copy(update={"psnr": 99.0})})
    assert precisions(strict) <= {"fp32", "w8a8", "w8a8-block128"}
    assert precisions(cpu(), error=0.0) == {"fp32"}
    with pytest.raises(InputError, match="least error"):
        make_plan(spec, cpu(), registry, evidence=Evidence(made, NONE, weights=10.0))
    small = precisions(cpu(), weights=192_000.0, error=1.0)
    assert small <= {"w4a8", "w4a16"}


def test_rules_go_by_sparsity(made: Calibration, little: Path) -> None:
    spec, registry = spec_of(little), Registry()
    site = made.sites["dit/blocks.0.ffn.0.op"]
    empty = replace(made, sites={**made.sites, "dit/blocks.0.ffn.0.op": replace(site, weight_sparsity=0.8)})
    plan = make_plan(spec, cpu(policy="rules"), registry, evidence=Evidence(empty))
    assert plan["dit/blocks.0.ffn.0.op"].precision == "w4a8"
    assert plan["dit/blocks.0.ffn.0.op"].note == "80% of weight tiles empty"
    assert plan["dit/blocks.1.ffn.0.op"].precision == "w8a8"
    assert plan["dit/head.head.op"].precision == "fp32"
    with pytest.raises(InputError, match="there is no calibration"):
        make_plan(spec, cpu(policy="budget"), registry)


def test_the_command_line_from_prompts_to_a_planned_video(
    little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from turbort.cli import app

    def cli(*args: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(arg) for arg in args], prog_name="turbort")
        text = capsys.readouterr()
        assert not ended.value.code, text.err
        return text.out

    monkeypatch.setenv("TURBORT_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, prompt in (("a", "a red circle moves right"), ("b", '{"prompt": "a blue star moves left", "seed": 1}')):
        (tmp_path / f"{name}.txt").write_text(prompt + "\n")
        cli("calibrate", "--model", little, "--prompts", f"{name}.txt", "--steps", 1, "--link", "none", "-o", f"{name}.json")
    out = cli("calibrate", "--merge", "a.json", "--merge", "b.json", "-o", "both.json", "--json")
    assert json.loads(out)["runs"] == 2
    out = cli("plan", "--model", little, "--calibration", "both.json", "--pareto", "-o", "plan.yaml")
    assert "* chosen" in out
    assert "uniform w8a8" in out
    cli("run", "--model", little, "--plan", "plan.yaml", "--prompt", "a red circle moves right", "-o", "x.mp4", "-q")
    report = json.loads((tmp_path / "x.report.json").read_text())
    assert report["plan"]["policy"] == "budget"


def test_weights_pruned_by_second_order_run_and_lose_less(little: Path, tmp_path: Path) -> None:
    from turbort.checkpoints import open_checkpoint
    from turbort.checkpoints.sparse import prune
    from turbort.cli.prune import read_moments

    spec, registry = spec_of(little), Registry()
    subject = Subject(spec, cpu(), registry, find_target(cpu(), registry), little)
    calibrate(subject, [replace(JOB, steps=2)], linears=("w8a8",), links=(), moments=tmp_path / "moments.safetensors")
    whole = open_checkpoint(little / "dit.safetensors")
    moments = read_moments(tmp_path / "moments.safetensors", whole.digest)
    exact, _ = frames(little)
    quality = {}
    for name, known in (("magnitude", None), ("second", moments)):
        folder = tmp_path / name
        folder.mkdir()
        for part in ("vae.safetensors", "tokenizer.json", "text_encoder"):
            (folder / part).symlink_to(little / part)
        prune(whole, folder / "dit.safetensors", "bsq8", tile=4, density=0.6, moments=known)
        bsq8 = cpu().precision.linear.model_copy(update={"max": "bsq8", "min": "bsq8"})
        with Session.open(spec, cpu(linear=bsq8), jobs=[JOB], root=folder) as session:
            quality[name] = psnr(session.generate([JOB])[0].frames.astype(numpy.float32) / 255, exact)
            ran = {row["precision"] for row in session.report()["executed"] if row["op"] == "linear" and row["stage"] == "dit"}
        assert "bsq8" in ran
    assert quality["second"] > quality["magnitude"] + 0.5, quality
    with pytest.raises(InputError, match="other weights"):
        read_moments(tmp_path / "moments.safetensors", "sha256:other")


def test_a_memory_budget_shrinks_weights_before_anything_else(
    made: Calibration, little: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from turbort.cli.choose import Choice
    from turbort.cli.plan_evidence import Evidenced
    from turbort.memory import fastest, forecast

    monkeypatch.setenv("TURBORT_CACHE", str(tmp_path))
    (tmp_path / "c.json").write_text(made.dumps())
    spec, registry, profile = spec_of(little), Registry(), cpu()
    profile = profile.model_copy(update={"quality": profile.quality.model_copy(update={"psnr": 52.0})})
    choice = Choice(registry, profile, find_target(profile, registry))

    def planned(budget: int | None):
        plan = Evidenced(choice, spec, JOB, 1, budget, tmp_path / "c.json").plan()
        return plan, forecast(plan, spec, profile, fastest(plan, spec)).needed

    free, needed = planned(None)
    tight, less = planned(needed - 20_000)
    assert less <= needed - 20_000
    assert tight.header["predicted"]["ms"] >= 0.99 * free.header["predicted"]["ms"]
    assert tight.header["predicted"]["psnr"] >= 51.9
