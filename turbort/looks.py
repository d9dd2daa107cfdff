"""What calibration keeps of how its videos looked while they were made, and where the cuts between strengths lie. No torch here.

A `Look` is one step of one video: the signal (`turbort.models.signal`) and the error that the model's output felt there. Which
values of the signal are the hard ones is not taken for granted: it is the sign of the rank correlation with the videos' errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SIGNALS = ("gradient", "motion")
ERROR = "error"
"""The signal that compares two levels' predictions in the first step."""


@dataclass(frozen=True)
class Look:
    """One step of one video.

    Attributes:
        t: the model's time, in [0, 1000].
        gradient, motion: the signal of the clean latents that the step predicted.
        felt: relative error of the step's output, by precision of all linears: the sum over call sites.
    """

    t: float
    gradient: float
    motion: float
    felt: Mapping[str, float] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """Plain data that `Look.of` reads."""
        return {"t": self.t, "gradient": self.gradient, "motion": self.motion, "felt": dict(self.felt)}

    @staticmethod
    def of(row: Mapping[str, Any]) -> Look:
        felt = {str(name): float(value) for name, value in row["felt"].items()}
        return Look(float(row["t"]), float(row["gradient"]), float(row["motion"]), felt)


@dataclass(frozen=True)
class Video:
    """The steps of one calibrated video.

    Where whole videos were made at a precision, `mse` is their pixel error, and `first` how far the clean latents that their
    first step predicts moved, relative to those latents' variance.
    """

    looks: tuple[Look, ...] = ()
    mse: Mapping[str, float] = field(default_factory=dict)
    first: Mapping[str, float] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """Plain data that `Video.of` reads."""
        return {"looks": [look.as_data() for look in self.looks], "mse": dict(self.mse), "first": dict(self.first)}

    @staticmethod
    def of(row: Mapping[str, Any]) -> Video:
        mse, first = ({str(name): float(value) for name, value in row[key].items()} for key in ("mse", "first"))
        return Video(tuple(map(Look.of, row["looks"])), mse, first)

    def value(self, signal: str, step: int, precision: str) -> float | None:
        """A signal at a step, counted from 1; None where it was not recorded."""
        if signal == ERROR:
            return self.first.get(precision) if step == 1 else None
        return float(getattr(self.looks[step - 1], signal)) if len(self.looks) >= step else None

    def error(self, precision: str) -> float | None:
        """How hard the video was: its pixel error where known, else the error its steps felt; None where neither was recorded."""
        if precision in self.mse:
            return self.mse[precision]
        felt = [look.felt[precision] for look in self.looks if precision in look.felt]
        return sum(felt) / len(felt) if felt else None


@dataclass(frozen=True)
class Trend:
    """How a signal at one step goes with the error of the video: rank correlation over `clips` videos."""

    signal: str
    step: int
    precision: str
    correlation: float
    clips: int
    label: str

    @property
    def tells(self) -> bool:
        """Whether unrelated numbers would show such a correlation in fewer than one of twenty cases."""
        return abs(self.correlation) > 1.96 / math.sqrt(self.clips - 1)

    @property
    def hard(self) -> str:
        """`low` where smaller values go with larger errors."""
        return "low" if self.correlation < 0 else "high"


def trend(videos: Sequence[Video], signal: str, step: int, precision: str) -> Trend | None:
    """The trend over the videos that have this step (counted from 1) and an error at `precision`; None with fewer than three."""
    rows = [(video.value(signal, step, precision), video.error(precision)) for video in videos]
    known = [(value, error) for value, error in rows if value is not None and error is not None]
    if len(known) < 3:
        return None
    label = "video" if all(precision in video.mse for video in videos) else "felt"
    return Trend(signal, step, precision, spearman(*zip(*known, strict=True)), len(known), label)


def best_trend(videos: Sequence[Video], signals: Iterable[str], step: int, precision: str) -> Trend | None:
    """The signal whose rank correlation is largest, either way."""
    found = [row for row in (trend(videos, signal, step, precision) for signal in signals) if row is not None]
    return max(found, key=lambda row: abs(row.correlation), default=None)


def cuts(videos: Sequence[Video], row: Trend, hard: str, quantiles: Sequence[float]) -> list[float]:
    """Values of a trend's signal at its step that leave these shares of the videos, the easiest first, on the easy side."""
    found = (video.value(row.signal, row.step, row.precision) for video in videos)
    values = sorted(value for value in found if value is not None)
    return [quantile(values, share if hard == "high" else 1.0 - share) for share in quantiles]


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile of sorted values, on straight lines between them."""
    place = share * (len(values) - 1)
    low = min(int(place), max(0, len(values) - 2))
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation; ties share their mean rank, and a constant has none."""
    a, b = _ranks(x), _ranks(y)
    mean = (len(a) - 1) / 2
    both = sum((i - mean) * (j - mean) for i, j in zip(a, b, strict=True))
    spread = math.sqrt(sum((i - mean) ** 2 for i in a) * sum((j - mean) ** 2 for j in b))
    return both / spread if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or values[order[end]] != values[order[start]]:
            for place in order[start:end]:
                ranks[place] = (start + end - 1) / 2
            start = end
    return ranks
