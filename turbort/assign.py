"""Precisions by calibration: the sites of a model as a knapsack, and its solution as words for the planner.

Sites that read one activation belong together: the producer hands it over quantised only when all its readers want one
scheme, and otherwise each quantises it by itself. So a group is a family of sites, and an option gives each a precision.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from turbort.calibration import Calibration
from turbort.costs import Costs
from turbort.errors import InputError
from turbort.kernel import Call
from turbort.knapsack import Option, Selection, frontier, solve
from turbort.precision import PRECISIONS
from turbort.roofline import weight_bytes
from turbort.site_record import SiteRecord

if TYPE_CHECKING:
    from turbort.planner import Planner

LINEAR_OPS = ("linear",)
TOGETHER = 4
"""Readers of one activation that are chosen together (the text's keys and values of all blocks read one, unquantised)."""
TIE = 0.01
"""Predicted times that differ by less count as equal, and the smaller error decides: neither source is that exact."""
TEXT_ROLE = "cross.kv"
"""Runs once per prompt, not once per step."""


@dataclass(frozen=True)
class Site:
    """A call site with its candidates: seconds and error of each, and where the seconds come from."""

    call: Call
    seconds: Mapping[str, float]
    errors: Mapping[str, float]
    memory: Mapping[str, float]
    source: str
    runs: float

    def note(self, precision: str, compute: str) -> str:
        """Why, in one line that is the same for sites of one shape."""
        others = [name for name in (compute, *self.seconds) if name != precision and name in self.seconds]
        text = f"{self.source} {_ms(self.seconds[precision])}"
        return text + (f", {_ms(self.seconds[others[0]])} at {others[0]}" if others else "")


@dataclass(frozen=True)
class Family:
    """Sites with one producer. `schemes` are those in which it can hand over its output."""

    sites: tuple[Site, ...]
    schemes: tuple[str, ...]


@dataclass(frozen=True)
class Assignment:
    """A precision for every site, and what is predicted for them: seconds per step, relative error, bytes of weights."""

    precisions: Mapping[str, str]
    seconds: float
    error: float
    memory: float
    bound: float = 0.0

    @property
    def gap(self) -> float:
        """How far above the proven least time this is, relative."""
        return max(0.0, self.seconds - self.bound) / self.seconds if self.seconds else 0.0


class Problem:
    """The choice of precisions for the recorded sites of a model on one device, given what calibration found."""

    def __init__(self, planner: Planner, sites: Sequence[Sequence[Call]], calibration: Calibration, costs: Costs) -> None:
        self.compute = planner.profile.precision.compute
        self.costs = costs
        self.families = _families(planner, sites, calibration, costs)
        if not self.families:
            raise InputError(
                "the calibration covers no site that this profile lets the planner choose",
                fix="calibrate this model, or choose `policy: rules`",
            )
        self._options = [self._options_of(family) for family in self.families]

    @property
    def sites(self) -> Mapping[str, Site]:
        return {site.call.path: site for family in self.families for site in family.sites}

    def solve(self, error: float, memory: float = math.inf) -> Assignment:
        """The fastest assignment within `error` and `memory` bytes; InputError that says what is reachable."""
        groups = [[option for _, option in options] for options in self._options]
        found = solve(groups, error=error, memory=memory, tie=TIE)
        if found is None:
            safest = sum(min(option.error for _, option in options) for options in self._options)
            smallest = sum(min(option.memory for _, option in options) for options in self._options)
            raise InputError(
                f"no assignment of precisions has a predicted error of {error:.3g} at most within {memory:.3g} bytes of weights",
                tried=[f"the least error is {safest:.3g}", f"the least memory is {smallest:.3g} bytes"],
                fix="lower `quality.psnr`, or `precision.linear.min`",
            )
        return self._named(found)

    def frontier(self) -> list[Assignment]:
        """Every assignment that no other one beats in time and error, fastest first."""
        return [self._named(found) for found in frontier([[option for _, option in options] for options in self._options])]

    def uniform(self, precision: str) -> Assignment | None:
        """Every linear at one precision (sites that cannot, and attention, in the compute dtype); None if none can."""
        names = {}
        for path, site in self.sites.items():
            fits = site.call.op in LINEAR_OPS and precision in site.seconds
            names[path] = precision if fits else self.compute
        return self.evaluate(names) if precision in names.values() else None

    def evaluate(self, precisions: Mapping[str, str]) -> Assignment:
        """The sums of a given assignment."""
        parts = [self._sum(family, [precisions[site.call.path] for site in family.sites]) for family in self.families]
        time, error, memory = (math.fsum(getattr(part, name) for part in parts) for name in ("time", "error", "memory"))
        return Assignment(dict(precisions), time, error, memory, time)

    def _options_of(self, family: Family) -> list[tuple[tuple[str, ...], Option]]:
        """What is worth choosing from: combinations that no other one equals or beats in all three respects."""
        names = itertools.product(*(site.seconds for site in family.sites))
        every = [(combination, self._sum(family, combination)) for combination in names]
        every.sort(key=lambda pair: (pair[1].time, pair[1].error, pair[1].memory))
        kept: list[tuple[tuple[str, ...], Option]] = []
        for combination, option in every:
            if not any(other.error <= option.error and other.memory <= option.memory for _, other in kept):
                kept.append((combination, option))
        return kept

    def _sum(self, family: Family, names: Sequence[str]) -> Option:
        schemes = {PRECISIONS[name].emit for name in names}
        fused = len(schemes) == 1 and schemes <= set(family.schemes)
        time = error = memory = 0.0
        for site, name in zip(family.sites, names, strict=True):
            once = site.seconds[name]
            if not fused and site.call.op in LINEAR_OPS:
                once += self.costs.quantising(site.call, name)
            time += once * site.runs
            error += site.errors[name]
            memory += site.memory[name]
        return Option(time, error, memory)

    def _named(self, found: Selection) -> Assignment:
        names: dict[str, str] = {}
        for family, options, pick in zip(self.families, self._options, found.picks, strict=True):
            names.update(zip((site.call.path for site in family.sites), options[pick][0], strict=True))
        return Assignment(names, found.time, found.error, found.memory, found.bound)


def _families(planner: Planner, sites: Sequence[Sequence[Call]], calibration: Calibration, costs: Costs) -> list[Family]:
    steps = int(calibration.header.get("steps") or 1)
    producers = {path: calls for calls in sites for path in calls[0].consumers}
    members: dict[str, list[Site]] = {}
    for calls in sites:
        record = calibration.sites.get(calls[0].path)
        site = _site(planner, calls, record, costs, steps) if record else None
        if site is not None:
            source = producers.get(calls[0].path)
            key = source[0].path if source and calls[0].op in LINEAR_OPS else calls[0].path
            members.setdefault(key, []).append(site)
    emitting = {calls[0].path: calls for calls in sites}
    found = []
    for key, family in members.items():
        source = emitting[key]
        paths = {site.call.path for site in family}
        # A reader that is not chosen here takes the plain tensor, so the producer stays wide.
        alone = set(source[0].consumers) - paths
        schemes = () if alone or source[0].path in paths else planner.emits(planner.choose(source))
        if schemes and len(family) <= TOGETHER:
            found.append(Family(tuple(family), schemes))
        else:
            found.extend(Family((site,), ()) for site in family)
    return found


def _site(planner: Planner, calls: Sequence[Call], record: SiteRecord, costs: Costs, steps: int) -> Site | None:
    """The site with every candidate that was calibrated and that a kernel accepts; None where there is no choice."""
    call = calls[0]
    names = [name for name in planner.candidates(call) if name in record.precisions or PRECISIONS[name].kind == "float"]
    names = [name for name in names if planner.kernel(calls, name) is not None]
    if not names:
        return None
    source = costs.source(call, names)

    def share(name: str, empty: float) -> float:
        return 1.0 - empty if name.startswith("bsq") else 1.0

    return Site(
        call,
        {name: costs.seconds(call, name, source, share(name, record.empty_blocks)) for name in names},
        {name: 0.0 if PRECISIONS[name].kind == "float" else record.felt(name) for name in names},
        {name: weight_bytes(call, name, share(name, record.weight_sparsity)) for name in names},
        source,
        1.0 / steps if call.role == TEXT_ROLE else 1.0,
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
