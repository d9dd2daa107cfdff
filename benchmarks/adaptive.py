"""Do levels that follow the content beat uniform ones? Predicted time and measured error on the plane of both.

    OMP_NUM_THREADS=1 python -m benchmarks.adaptive [--clips 24] [--calibration FILE] [--out FILE]

Calibrates the model on captions of its own (or reads FILE), plans two levels on each of two ladders, and makes every clip
unquantised, at either level, with the strong level in the first step only, and as the plan's thresholds choose (every sixth clip
in a run of its own, whose frames must be those of the same levels set by hand).
Captions of one and of two objects alternate; those that are measured were not calibrated. Times are predicted, by the roofline
of a core with INT8 instructions: on a CPU without them float wins and there is nothing to trade. Errors are those of whole videos
against the unquantised ones from the same noise.

* `int8`: the knapsack's plans for 45 and 52 dB from 8 bits up. `int4`: every linear in w4a8, and every second kernel.
* The line is that of clips drawn by lot: the share that makes a contender's time, at the strong level.
* `adaptive` is what the plan does, the comparison's pass counted; `at their median` the same with the threshold at the median of
  these clips' own signal. `by gradient` and `by motion` go by the calibrated median of that signal, after a strong first step.
  `hindsight` gives the strong level to the half of clips that gain most.
* A lot picks as many clips, at random (the mean over all draws): what a contender gains over it is what its signal knows.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.adaptive_plane import db, show, summed
from benchmarks.machine import commit, describe_machine
from turbort.calibrate.run import Subject, calibrate
from turbort.calibration import Calibration
from turbort.guard.adapt import Adaptation
from turbort.guard.levels import make_levelled_plan
from turbort.guard.strength import Strengths
from turbort.job import Job
from turbort.kernel_times import KernelTimes
from turbort.looks import ERROR, SIGNALS
from turbort.models.signal import difference, measure
from turbort.models.spec import ModelSpec, get_model
from turbort.plan import Plan
from turbort.planner import find_target
from turbort.policy import Evidence
from turbort.profile import Profile, load_profile
from turbort.registry import Registry
from turbort.request import grammar_warning
from turbort.session import Session

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = ("moves right", "moves left", "moves up", "moves down", "moves diagonally up and to the right", "bounces up and down",
           "bounces left and right", "rotates", "grows", "shrinks")  # fmt: skip
CALIBRATED = 24
CHECKED = 6
"""Every so many clips are made once more with the levels chosen on the way."""


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("--clips", type=int, default=24)
    p.add_argument("--calibration", type=Path, help="read it, or write it there where there is none")
    p.add_argument("--out", type=Path)
    p.add_argument("--again", type=Path, help="results of an earlier run, whose videos are not made again")
    args = p.parse_args()
    spec, registry = get_model("tiny"), Registry()
    made = calibrated(spec, registry, args.calibration)
    jobs = [Job(text, seed=number).resolved(spec) for number, text in enumerate(captions(args.clips, seed=2, spec=spec))]
    before = json.loads(args.again.read_text(encoding="utf-8")) if args.again else None
    exact = [] if before else exact_videos(spec, registry, jobs)
    ladders = {}
    for name, profile in (("int8", int8()), ("int4", int4())):
        target = find_target(profile, registry)
        plan = make_levelled_plan(spec, profile, registry, target=target, evidence=Evidence(made, KernelTimes({})))
        forced = forced_levels(plan, spec, profile, registry, made)
        ladder = Ladder(name, profile, forced)
        rows = before["ladders"][name]["clips"] if before else ladder.measured(spec, registry, jobs, exact)
        strengths = Strengths.of(forced.header)
        assert strengths is not None
        ladders[name] = summed(strengths, plan, rows, jobs[0].steps or spec.preset.steps, made)
        show(name, ladders[name])
    if args.out:
        head = {"benchmark": "adaptive", "commit": commit(), "machine": describe_machine(), "model": spec.name}
        head = {**before, **head, "commit": before["commit"], "machine": before["machine"]} if before else head
        head |= {"weights": dict(made.header["checkpoints"]), "clips": len(jobs), "calibrated": len(made.videos)}
        args.out.write_text(json.dumps({**head, "ladders": ladders}, indent=1) + "\n", encoding="utf-8")


def captions(count: int, *, seed: int, spec: ModelSpec) -> list[str]:
    """One object and two objects in turn."""
    draw, found = random.Random(seed), []
    for number in range(count):
        one, other = draw.sample(COLOURS, 2)
        found.append(f"{clause(one, draw)} while {clause(other, draw)}" if number % 2 else clause(one, draw))
    outside = grammar_warning(found, spec)
    if outside:
        raise SystemExit(outside)
    return found


def clause(colour: str, draw: random.Random) -> str:
    """One object; nobody sees a circle rotate, and the model's grammar has no such caption."""
    shape = draw.choice(SHAPES)
    return f"a {colour} {shape} {draw.choice([motion for motion in MOTIONS if (shape, motion) != ('circle', 'rotates')])}"


def calibrated(spec: ModelSpec, registry: Registry, path: Path | None) -> Calibration:
    if path and path.is_file():
        return Calibration.load(path)
    profile = load_profile("cpu")
    assert spec.root is not None
    subject = Subject(spec, profile, registry, find_target(profile, registry), spec.root)
    jobs = [Job(text, seed=1000 + number) for number, text in enumerate(captions(CALIBRATED, seed=1, spec=spec))]
    made = calibrate(subject, jobs, linears=("w8a8", "w4a8"), every_link=True)
    if path:
        path.write_text(made.dumps(), encoding="utf-8")
    return made


def changed(**sections: dict[str, Any]) -> Profile:
    profile = load_profile("cpu")
    sections = {"monitor": {"on_outlier": "ignore"}, **sections}
    return profile.model_copy(update={key: getattr(profile, key).model_copy(update=new) for key, new in sections.items()})


def linear(least: str, most: str) -> dict[str, Any]:
    return {"linear": load_profile("cpu").precision.linear.model_copy(update={"max": most, "min": least})}


def int8() -> Profile:
    precision = {**linear("w8a8", "w8a8"), "attention": "int8", "policy": "budget"}
    return changed(precision=precision, adaptive={"enabled": True, "signal": "error", "levels": (45.0, 52.0)})


def int4() -> Profile:
    return changed(precision={**linear("w4a8", "w4a8"), "policy": "rules"}, adaptive={"enabled": True, "signal": "error"})


def forced_levels(plan: Plan, spec: ModelSpec, profile: Profile, registry: Registry, made: Calibration) -> Plan:
    """The same plan with levels even where the calibration advises against them (`hard` is then the correlation's sign)."""
    found = Strengths.of(plan.header)
    assert found is not None
    if found.works:
        return plan
    print(f"the plan says: {found.describe()[0]}")
    sign = "low" if "correlation -" in found.note else "high"
    insisting = profile.model_copy(update={"adaptive": profile.adaptive.model_copy(update={"hard": sign})})
    target = find_target(profile, registry)
    return make_levelled_plan(spec, insisting, registry, target=target, evidence=Evidence(made, KernelTimes({})))


class Fixed:
    """Stands in for `Adaptation`: the strong level in the steps that are named."""

    other = None

    def __init__(self, strengths: Strengths, strong: Sequence[int]) -> None:
        self.strengths, self.strong, self.step = strengths, set(strong), 0

    def begin(self, prompts: Sequence[str]) -> None:
        self.step = 0

    def level(self, t: float) -> frozenset[str]:
        self.step += 1
        return self.strengths.levels[-1 if self.step in self.strong else 0].promoted

    def seen(self, clean: Tensor) -> None:
        pass

    def as_data(self) -> list[dict[str, Any]]:
        return []


@dataclass
class Made:
    """One video: frames in [0, 1], and the clean latents that its first step predicted."""

    frames: np.ndarray
    first: Tensor

    def mse(self, other: Made) -> float:
        return max(float(np.square(self.frames - other.frames).mean()), 1e-10)


@torch.inference_mode()
def video(session: Session, job: Job) -> Made:
    states = list(session.denoiser([job], session._embed([job])).steps(job, [job.seed]))
    _, frames = session.decode(states[-1].x, replace(job, out=None))
    return Made(np.asarray(frames, dtype=np.float32) / 255, states[0].clean)


def exact_videos(spec: ModelSpec, registry: Registry, jobs: Sequence[Job]) -> list[Made]:
    with Session.open(spec, changed(precision=linear("fp32", "fp32")), registry=registry, jobs=jobs[:1]) as session:
        return [video(session, job) for job in jobs]


@dataclass
class Ladder:
    """Two levels of one profile, and what all schedules make of every clip."""

    name: str
    profile: Profile
    plan: Plan

    def measured(self, spec: ModelSpec, registry: Registry, jobs: Sequence[Job], exact: Sequence[Made]) -> list[dict[str, Any]]:
        strengths = Strengths.of(self.plan.header)
        assert strengths is not None
        steps = jobs[0].steps or spec.preset.steps
        strong = {"low": (), "high": range(1, steps + 1), "high first": (1,)}
        rows = []
        with Session.open(spec, self.profile, registry=registry, plan=self.plan, jobs=jobs[:1]) as session:
            following = Adaptation(strengths, session.device)
            for number, (job, truth) in enumerate(zip(jobs, exact, strict=True)):
                made = {}
                for schedule, numbers in strong.items():
                    session.adaptation = Fixed(strengths, numbers)  # type: ignore[assignment]
                    made[schedule] = video(session, job)
                signals = dict(zip(SIGNALS, measure(made["high"].first)[0].tolist(), strict=True))
                signals[ERROR] = float(difference(made["high"].first, made["low"].first))
                later = strengths.cuts[0].level([signals[strengths.signal]])
                # Where the levels are compared, the first step's result is that of the level chosen, too.
                levels = [later if strengths.signal == ERROR else strengths.begin, *[later] * (steps - 1)]
                if number % CHECKED == 0:
                    session.adaptation = following
                    mine = video(session, job)
                    same = [row["level"] for row in following.as_data()[-1]["steps"]] == levels
                    wanted = made["high" if later else "low" if strengths.signal == ERROR else "high first"]
                    if not same or not np.array_equal(mine.frames, wanted.frames):
                        raise SystemExit(f"{job.prompt}: a run does not do what its levels {levels} do when set by hand")
                rows.append(
                    {
                        "caption": job.prompt,
                        "objects": 1 + (" while " in job.prompt),
                        "levels": levels,
                        **signals,
                        "mse": {name: clip.mse(truth) for name, clip in made.items()},
                    }
                )
                print(f"{self.name} {number + 1}: {db(np.array(list(rows[-1]['mse'].values()))).round(1)}", flush=True)
        return rows


if __name__ == "__main__":
    main()
