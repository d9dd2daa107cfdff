"""From calibration to precisions: the two policies that a profile may name.

`budget` solves the knapsack of `turbort.assign`: the fastest assignment whose predicted error stays within `quality.psnr`.
`rules` goes by thresholds: attention at the profile's precision; a linear at `linear.max`, or at `linear.min` where more than
`sparsity_threshold` of its weight tiles are empty or more than `activation_sparsity` of its activations are near zero; first and
last layers and the time path never below 16 bits. Without calibration nothing is known of sparsity, so `rules` is what remains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from turbort.assign import Problem
from turbort.calibration import Calibration
from turbort.costs import Costs
from turbort.errors import InputError
from turbort.kernel import Call
from turbort.kernel_times import KernelTimes

if TYPE_CHECKING:
    from turbort.planner import Planner

Assigned = Mapping[str, tuple[str, "str | None"]]


@dataclass(frozen=True)
class Evidence:
    """What a plan may rest on besides the profile.

    Attributes:
        calibration: errors per site and precision; None plans by rules.
        times: measured kernel times; None reads this machine's table.
        weights: bytes that the chosen sites' weights may take.
        error: bound on the predicted error; None takes it from the profile's `quality.psnr`.
    """

    calibration: Calibration | None = None
    times: KernelTimes | None = None
    weights: float = math.inf
    error: float | None = None


@dataclass(frozen=True)
class Judged:
    """Precisions with notes for the planner, and what the plan's header says of them."""

    assigned: Assigned = field(default_factory=dict)
    header: Mapping[str, Any] = field(default_factory=dict)


def judge(planner: Planner, sites: Sequence[Sequence[Call]], evidence: Evidence | None, model: str) -> Judged:
    """What the profile's policy makes of the evidence."""
    policy = planner.profile.precision.policy
    calibration = evidence.calibration if evidence else None
    if calibration is None:
        if policy == "budget":
            raise InputError(
                f"profile {planner.profile.name} plans by budget and there is no calibration",
                fix="add `--calibration FILE` from `turbort calibrate`, or choose `policy: rules`",
            )
        return Judged()
    assert evidence is not None  # it holds the calibration
    calibration.check(model)
    bound = {"calibration": {"digest": calibration.digest, "checkpoints": calibration.header.get("checkpoints", {})}}
    if policy == "rules":
        return Judged(by_rules(planner, sites, calibration), {"policy": "rules", **bound})
    problem = problem_of(planner, sites, evidence)
    error = evidence.error if evidence.error is not None else calibration.error_for(planner.profile.planned_psnr)
    found = problem.solve(error, evidence.weights)
    compute = planner.profile.precision.compute
    assigned = {path: (name, problem.sites[path].note(name, compute)) for path, name in found.precisions.items()}
    predicted = {
        "ms": round(found.seconds * 1e3, 6),
        "error": float(f"{found.error:.4g}"),
        "error_budget": float(f"{error:.4g}"),
        "psnr": round(calibration.psnr_at(found.error), 2),
        "gap": float(f"{found.gap:.2g}"),
    }
    return Judged(assigned, {"policy": "budget", **bound, "predicted": predicted})


def problem_of(planner: Planner, sites: Sequence[Sequence[Call]], evidence: Evidence) -> Problem:
    """The knapsack that belongs to a planner's profile and device."""
    assert evidence.calibration is not None
    profile = planner.profile
    costs = Costs.of(planner.target.device, profile.target.arch, profile.precision.compute, evidence.times)
    return Problem(planner, sites, evidence.calibration, costs)


def by_rules(planner: Planner, sites: Sequence[Sequence[Call]], calibration: Calibration) -> Assigned:
    """Linears that are sparse enough for the profile's least precision."""
    words = planner.profile.precision.linear
    found = {}
    for calls in sites:
        record = calibration.sites.get(calls[0].path)
        if record is None or calls[0].op != "linear" or words.min not in planner.candidates(calls[0]):
            continue
        empty, quiet = record.weight_sparsity, record.seen.sparsity
        if empty > words.sparsity_threshold:
            found[calls[0].path] = words.min, f"{empty:.0%} of weight tiles empty"
        elif quiet > words.activation_sparsity:
            found[calls[0].path] = words.min, f"{quiet:.0%} of activations near zero"
    return found
