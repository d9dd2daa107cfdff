"""Planning strength levels: which groups of call sites run their second kernel at each, and where the signal divides them.

A level is the plan with some of its twin kernels in place, so it is as much a plan as any, and taking it costs an assignment.
Which groups: a knapsack over them with two options each, the plan's precision and the second kernel's, at the level's own bound
on the error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from turbort.assign import Assignment, Problem
from turbort.calibration import Calibration
from turbort.guard.groups import Group, find_groups
from turbort.guard.strength import Cut, Level, Strengths
from turbort.knapsack import Option, solve
from turbort.looks import ERROR, SIGNALS, Trend, Video, best_trend, cuts, trend
from turbort.models.spec import ModelSpec
from turbort.plan import Plan
from turbort.planner import Planner, Target, find_target, make_plan, recorded
from turbort.policy import Evidence, problem_of
from turbort.precision import LINEAR
from turbort.profile import Profile
from turbort.registry import Registry

LEAST_VIDEOS = 8
"""Calibrated videos below which quantiles and the sign of a correlation say nothing."""
COMPARED_STEPS = 20
"""Steps from which `signal: auto` may compare two levels in the first one, which costs a pass: 5 % of a video at most."""


def make_levelled_plan(
    spec: ModelSpec,
    profile: Profile,
    registry: Registry,
    *,
    target: Target | None = None,
    evidence: Evidence | None = None,
    **how: Any,
) -> Plan:
    """`make_plan`, with the strength levels that the profile asks for in the plan's header (`adaptive`)."""
    where = target or find_target(profile, registry, how.pop("backend", None))
    plan = make_plan(spec, profile, registry, target=where, evidence=evidence, **how)
    if not profile.adaptive.enabled:
        return plan
    return plan.with_header(adaptive=strengths_of(plan, spec, profile, registry, where, evidence).as_data())


def strengths_of(
    plan: Plan, spec: ModelSpec, profile: Profile, registry: Registry, target: Target, evidence: Evidence | None = None
) -> Strengths:
    """The levels of a plan under its profile; with a `note` instead where there is nothing to choose between or by."""
    wish = profile.adaptive
    calibration = evidence.calibration if evidence else None

    def off(note: str) -> Strengths:
        return Strengths(wish.per, "", 0, note=note)

    groups = find_groups(spec, profile, registry, target, plan)
    if not groups:
        return off("no call site of this plan has integer activations, so none has a second kernel")
    if not wish.thresholds and (calibration is None or len(calibration.videos) < LEAST_VIDEOS):
        count = len(calibration.videos) if calibration else 0
        return off(f"thresholds are quantiles of {LEAST_VIDEOS} calibrated videos at least, there are {count}")
    problem = _problem(plan, spec, profile, registry, target, evidence)
    levels = _levels(plan, groups, problem, calibration, profile.adaptive.levels[1:])
    begin = len(levels) - 1 if wish.begin == "high" else 0
    if wish.thresholds:
        cut = Cut(None, wish.hard, wish.thresholds)
        return Strengths(wish.per, wish.signal, begin, levels, (cut,), f"{wish.signal}, thresholds of the profile")
    assert calibration is not None  # counted above
    return _by_quantiles(calibration, profile, plan, levels, begin)


def _problem(
    plan: Plan, spec: ModelSpec, profile: Profile, registry: Registry, target: Target, evidence: Evidence | None
) -> Problem | None:
    """The knapsack of the plan's own sites; None without calibration."""
    if evidence is None or evidence.calibration is None:
        return None
    width, height = plan.header["size"]
    sites = recorded(spec, profile, size=(width, height), frames=plan.header["frames"], batch=plan.header["batch"])
    return problem_of(Planner(profile, registry, target), sites, evidence)


def _levels(
    plan: Plan, groups: Sequence[Group], problem: Problem | None, calibration: Calibration | None, wanted: Sequence[float]
) -> tuple[Level, ...]:
    """The plan as it is, then a level for each PSNR in `wanted`; without those, or without calibration, every second kernel."""
    everything = frozenset(group.name for group in groups)
    if problem is None or calibration is None:
        return Level(frozenset()), Level(everything)
    sets = [_within(problem, plan, groups, calibration.error_for(psnr)) for psnr in wanted] or [everything]
    levels = []
    for chosen in (frozenset[str](), *sets):
        found = assigned(problem, plan, groups, chosen)
        psnr = round(calibration.psnr_at(found.error), 2)
        levels.append(Level(chosen, round(found.seconds * 1e3, 6), float(f"{found.error:.4g}"), psnr))
    return tuple(levels)


def assigned(problem: Problem, plan: Plan, groups: Sequence[Group], promoted: frozenset[str]) -> Assignment:
    """What is predicted for a plan with these groups promoted."""
    names = {choice.path: choice.precision for choice in plan}
    for group in groups:
        if group.name in promoted:
            names.update((member.then.path, member.then.precision) for member in group.members)
    return problem.evaluate({path: names[path] for path in problem.sites})


def _within(problem: Problem, plan: Plan, groups: Sequence[Group], error: float) -> frozenset[str]:
    """The groups to promote for the least time within `error`; every group that lowers the error where none is enough."""
    base = assigned(problem, plan, groups, frozenset())
    changes = [assigned(problem, plan, groups, frozenset({group.name})) for group in groups]
    options = []
    for change in changes:
        time, harm = change.seconds - base.seconds, change.error - base.error
        # Neither option may be negative, so each difference is charged to the option that is worse.
        options.append((Option(max(0.0, -time), max(0.0, -harm)), Option(max(0.0, time), max(0.0, harm))))
    room = error - base.error + sum(now.error for now, _ in options)
    found = solve(options, error=room) if room >= 0 else None
    if found is None:
        return frozenset(group.name for group, (now, then) in zip(groups, options, strict=True) if then.error < now.error)
    return frozenset(group.name for group, pick in zip(groups, found.picks, strict=True) if pick)


def _by_quantiles(calibration: Calibration, profile: Profile, plan: Plan, levels: tuple[Level, ...], begin: int) -> Strengths:
    wish, videos = profile.adaptive, calibration.videos
    precision = _judged_at(plan, videos)
    worthwhile = wish.per == "clip" and int(calibration.header.get("steps") or 1) >= COMPARED_STEPS
    every = (*SIGNALS, ERROR) if worthwhile else SIGNALS
    wanted = every if wish.signal == "auto" else (wish.signal,)
    first = best_trend(videos, wanted, 1, precision)
    if first is None:
        note = f"the calibration knows no error of a whole step or video at {precision}"
        return Strengths(wish.per, "", 0, note=note)
    if wish.hard == "auto" and not first.tells:
        note = (
            f"{first.signal} does not tell hard videos from easy ones: rank correlation {first.correlation:+.2f} with their "
            f"errors at {first.precision} over {first.clips} videos"
        )
        return Strengths(wish.per, "", 0, note=note)
    steps = min(len(video.looks) for video in videos)
    # The last two steps' signals come too late for any decision.
    later = range(2, steps - 1) if wish.per == "step" else ()
    rows = [first, *(trend(videos, first.signal, step, precision) for step in later)]
    scale = _moved(calibration, levels, precision) if first.signal == ERROR else 1.0
    found = tuple(_cut(videos, row, wish.hard, wish.quantiles, scale) for row in rows if row is not None)
    against = "pixel errors" if first.label == "video" else "errors of the steps"
    basis = f"{first.signal}, quantiles of {first.clips} videos, against their {against} at {precision}"
    return Strengths(wish.per, first.signal, begin, levels, found, basis)


def _moved(calibration: Calibration, levels: Sequence[Level], precision: str) -> float:
    """How far the outermost levels lie apart, in units of what calibration compared: all linears at `precision` with none."""
    whole = sum(site.felt(precision) for site in calibration.sites.values() if precision in site.precisions)
    apart = (levels[0].error or 0.0) - (levels[-1].error or 0.0)
    return apart / whole if whole > 0 and apart > 0 else 1.0


def _cut(videos: Sequence[Video], row: Trend, hard: str, quantiles: Sequence[float], scale: float) -> Cut:
    side = row.hard if hard == "auto" else hard
    at = tuple(float(f"{scale * value:.6g}") for value in cuts(videos, row, side, quantiles))
    return Cut(videos[0].looks[row.step - 1].t, side, at, round(row.correlation, 3))


def _judged_at(plan: Plan, videos: Sequence[Video]) -> str:
    """The precision whose errors say which videos are hard: the plan's most frequent one, else one that was calibrated."""
    counts = Counter(choice.precision for choice in plan if choice.precision in LINEAR)
    ranked = [name for name, _ in counts.most_common()]
    known = [name for name in (*ranked, *LINEAR) if all(video.error(name) is not None for video in videos)]
    return known[0] if known else (ranked or list(LINEAR))[0]
