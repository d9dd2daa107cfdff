"""What it would cost to give the worst call sites one precision more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from turbort.bind import bound_function, find_kernel, pack_weight
from turbort.kernel import Call
from turbort.planner import Planner
from turbort.precision import PRECISIONS
from turbort.quality.sites import Site
from turbort.stand_in import steps_up
from turbort.testing.values import spec_of, tensors

REPEATS = 3


@dataclass(frozen=True)
class Promotion:
    """One site at its next precision: milliseconds per call now and then, and bytes of its weight now and then."""

    path: str
    nmse: float
    precision: str
    next: str | None
    ms: float = 0.0
    next_ms: float = 0.0
    weight: int = 0
    next_weight: int = 0
    note: str = ""

    def as_data(self) -> dict[str, Any]:
        """The promotion as plain data."""
        return {key: getattr(self, key) for key in self.__dataclass_fields__}


def worst_sites(sites: Sequence[Site], most: int = 5) -> list[Site]:
    """Sites that missed their budget, worst first, then the quantised ones by error."""
    failed = sorted((site for site in sites if not site.passed), key=lambda site: -site.worst)
    rest = [site for site in sites if site.passed and PRECISIONS[site.choice.precision].kind != "float"]
    return (failed + sorted(rest, key=lambda site: -site.nmse))[:most]


class Costs:
    """Times sites on live arguments: hand `seen` to `SiteErrors.watching` for one forward."""

    def __init__(self, wanted: Sequence[Site], planner: Planner, synchronize: Callable[[], None]) -> None:
        self._wanted = {site.choice.path: site for site in wanted}
        self._planner = planner
        self._synchronize = synchronize
        self.rows: dict[str, Promotion] = {}

    def seen(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Time one call at both precisions, the first time that a wanted site is met."""
        choice = site.choice
        if choice.path in self.rows or choice.path not in self._wanted:
            return
        names = tuple(site.slot.op.signature.parameters)
        up = next(iter(steps_up(choice.precision, self._planner.profile.precision.compute)), None)
        found = None if up is None else self._planner.at([_call(site, args, kwargs)], up)
        now = self._time(lambda: site.run(names, args, kwargs))
        if found is None:
            note = "has no next precision" if up is None else f"no kernel computes it at {up}"
            self.rows[choice.path] = Promotion(choice.path, site.nmse, choice.precision, None, now, note=note)
            return
        kernel = find_kernel(found, self._planner.registry)
        function = bound_function(found, kernel, site.slot.op)
        given = list(args)
        before = after = 0
        if site.slot.op.weights:
            index = names.index("weight")
            before = _bytes(site.owner.weight)
            given[index] = pack_weight(args[index], found, kernel, shape=args[index].shape, device=args[index].device)
            after = _bytes(given[index])
        then = self._time(lambda: function(*given, **kwargs))
        self.rows[choice.path] = Promotion(choice.path, site.nmse, choice.precision, up, now, then, before, after)

    def _time(self, call: Callable[[], Any]) -> float:
        """Milliseconds: the best of a few calls, after one that warms up."""
        call()
        best = float("inf")
        for _ in range(REPEATS):
            self._synchronize()
            start = perf_counter()
            call()
            self._synchronize()
            best = min(best, perf_counter() - start)
        return round(1000 * best, 4)


def _call(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    bound = site.slot.op.signature.bind(*args, **kwargs).arguments
    return Call(site.choice.op, site.choice.path, site.choice.role, {name: spec_of(value) for name, value in bound.items()})


def _bytes(value: Any) -> int:
    """Bytes of the tensors in a weight, packed or not; opaque layouts (oneDNN's) have no storage that could be asked."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(value))
