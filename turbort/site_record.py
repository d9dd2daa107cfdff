"""What calibration keeps of a call site: sums, counts and extremes, so that parts add up to the whole. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

BINS = 40
LOWEST = -24
"""`Moments.bins[i]` counts values with 2^(LOWEST+i) <= |x| < 2^(LOWEST+i+1); the first and the last take what lies beyond."""
OUTLIER = 6.0
"""A value is an outlier beyond this many root mean squares of its tensor."""

T = TypeVar("T")


@dataclass(frozen=True)
class Moments:
    """Streaming statistics of a site's input.

    Attributes:
        count: values seen; total, square: their sum and sum of squares; low, high: the range.
        outliers: values beyond `OUTLIER` root mean squares of their tensor.
        zeros: values whose int8 code is 0 when each token has its own scale.
        bins: counts by binary exponent of |x|, for quantiles.
    """

    count: int = 0
    total: float = 0.0
    square: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    outliers: int = 0
    zeros: int = 0
    bins: tuple[int, ...] = (0,) * BINS

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.square + other.square,
            min(self.low, other.low),
            max(self.high, other.high),
            self.outliers + other.outliers,
            self.zeros + other.zeros,
            tuple(a + b for a, b in zip(self.bins, other.bins, strict=True)),
        )

    @property
    def largest(self) -> float:
        """max |x|."""
        return max(abs(self.low), abs(self.high)) if self.count else 0.0

    @property
    def rms(self) -> float:
        return math.sqrt(self.square / self.count) if self.count else 0.0

    @property
    def outlier_share(self) -> float:
        return self.outliers / self.count if self.count else 0.0

    @property
    def sparsity(self) -> float:
        """Share of near-zero values."""
        return self.zeros / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The power of two below which `share` of the magnitudes lie: right within a factor of two."""
        seen = 0
        for index, number in enumerate(self.bins):
            seen += number
            if seen >= share * self.count:
                return float(2.0 ** (LOWEST + index + 1))
        return self.largest


@dataclass(frozen=True)
class Harm:
    """What one precision does at a site, summed over calls.

    Attributes:
        error, signal: sum of (y_q - y)^2 and of y^2 over the site's own output: `nmse` is their quotient.
        felt: sum over calls of the error that the model's output feels, relative to that output's energy.
    """

    error: float = 0.0
    signal: float = 0.0
    felt: float = 0.0

    def __add__(self, other: Harm) -> Harm:
        return Harm(self.error + other.error, self.signal + other.signal, self.felt + other.felt)

    @property
    def nmse(self) -> float:
        return self.error / self.signal if self.signal else 0.0


@dataclass(frozen=True)
class StepRecord:
    """One site at one sampling step."""

    calls: int = 0
    seen: Moments = field(default_factory=Moments)
    harms: Mapping[str, Harm] = field(default_factory=dict)

    def __add__(self, other: StepRecord) -> StepRecord:
        return StepRecord(self.calls + other.calls, self.seen + other.seen, joined(self.harms, other.harms))


@dataclass(frozen=True)
class SiteRecord:
    """One call site: its op and role, what of its weight is empty, and its steps by number.

    `weight_sparsity` is the share of 8x8 tiles that are all zero, which saves bytes; `empty_blocks` that of 64x64 blocks, which
    is what a matrix unit can skip, so it saves time.
    """

    op: str
    role: str
    weight_sparsity: float = 0.0
    empty_blocks: float = 0.0
    steps: Mapping[int, StepRecord] = field(default_factory=dict)

    def __add__(self, other: SiteRecord) -> SiteRecord:
        return replace(self, steps=joined(self.steps, other.steps))

    @property
    def seen(self) -> Moments:
        """All steps together."""
        return sum((step.seen for step in self.steps.values()), Moments())

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that every step has been tried at."""
        names = [set(step.harms) for step in self.steps.values()]
        return tuple(sorted(set.intersection(*names))) if names else ()

    def felt(self, precision: str) -> float:
        """Mean over steps of the relative error that the model's output feels from this site at `precision`."""
        rows = [step.harms[precision].felt / max(step.calls, 1) for step in self.steps.values() if precision in step.harms]
        return sum(rows) / len(rows) if rows else 0.0

    def nmse(self, precision: str) -> float:
        """The site's own relative squared error at `precision`, over all steps."""
        rows = [step.harms[precision] for step in self.steps.values() if precision in step.harms]
        return sum(rows, Harm()).nmse


def joined(left: Mapping[Any, T], right: Mapping[Any, T]) -> dict[Any, T]:
    """Union of two mappings; values under the same key are added."""
    joined: dict[Any, Any] = dict(left)
    for key, value in right.items():
        joined[key] = joined[key] + value if key in joined else value
    return joined


def site_out(site: SiteRecord) -> dict[str, Any]:
    """A site as plain data."""
    steps = {
        str(number): {
            "calls": step.calls,
            "seen": _moments_out(step.seen),
            "harms": {name: [harm.error, harm.signal, harm.felt] for name, harm in step.harms.items()},
        }
        for number, step in site.steps.items()
    }
    empty = {"weight_sparsity": site.weight_sparsity, "empty_blocks": site.empty_blocks}
    return {"op": site.op, "role": site.role, **empty, "steps": steps}


def _moments_out(seen: Moments) -> dict[str, Any]:
    row: dict[str, Any] = {item.name: getattr(seen, item.name) for item in fields(seen)}
    return {**row, "bins": list(seen.bins)} if seen.count else {}


def site_in(row: Mapping[str, Any]) -> SiteRecord:
    """The inverse of `site_out`; KeyError, TypeError or ValueError for anything else."""
    steps = {
        int(number): StepRecord(
            int(step["calls"]),
            Moments(**{**step["seen"], "bins": tuple(step["seen"]["bins"])}) if step["seen"] else Moments(),
            {name: Harm(*map(float, values)) for name, values in step["harms"].items()},
        )
        for number, step in row["steps"].items()
    }
    return SiteRecord(str(row["op"]), str(row["role"]), float(row["weight_sparsity"]), float(row["empty_blocks"]), steps)
