"""Strength levels as a plan holds them: call sites that run their second kernel, and when which applies. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turbort.errors import PlanError, nearest


@dataclass(frozen=True)
class Level:
    """One strength: the groups that run their second kernel, and what is predicted for it (None without calibration)."""

    promoted: frozenset[str]
    ms: float | None = None
    error: float | None = None
    psnr: float | None = None

    def as_data(self) -> dict[str, Any]:
        """Plain data that `Level.of` reads; unknown predictions are left out."""
        found = {"ms": self.ms, "error": self.error, "psnr": self.psnr, "promoted": sorted(self.promoted)}
        return {key: value for key, value in found.items() if value is not None}

    @staticmethod
    def of(row: Mapping[str, Any]) -> Level:
        return Level(frozenset(map(str, row["promoted"])), row.get("ms"), row.get("error"), row.get("psnr"))


@dataclass(frozen=True)
class Cut:
    """Where the signal of one step divides the levels.

    Attributes:
        t: the model's time of the step, in [0, 1000]; None for every step.
        hard: which side asks for more precision.
        at: one value per level above the first, the easiest first.
        correlation: rank correlation of the signal at this step with the videos' errors, where it was calibrated.
    """

    t: float | None
    hard: str
    at: tuple[float, ...]
    correlation: float | None = None

    def level(self, values: Sequence[float]) -> int:
        """The level that the hardest of the samples in a batch asks for."""
        if self.hard == "low":
            return sum(min(values) <= limit for limit in self.at)
        return sum(max(values) >= limit for limit in self.at)

    def as_data(self) -> dict[str, Any]:
        """Plain data that `Cut.of` reads."""
        found = {"t": self.t, "hard": self.hard, "at": list(self.at), "correlation": self.correlation}
        return {key: value for key, value in found.items() if value is not None}

    @staticmethod
    def of(row: Mapping[str, Any]) -> Cut:
        return Cut(row.get("t"), str(row["hard"]), tuple(map(float, row["at"])), row.get("correlation"))


@dataclass(frozen=True)
class Strengths:
    """The part of a plan that says which level runs when.

    `levels` go from the weakest precisions to the strongest; `begin` is the level of steps before anything is known. `basis` says
    in words where the cuts come from; `note` why there are none, and then the plan runs as it is.
    """

    per: str
    signal: str
    begin: int
    levels: tuple[Level, ...] = ()
    cuts: tuple[Cut, ...] = ()
    basis: str = ""
    note: str = ""

    @property
    def works(self) -> bool:
        """Whether there is anything to choose, and something to choose by."""
        return len(self.levels) > 1 and bool(self.cuts)

    @property
    def groups(self) -> frozenset[str]:
        """Every group that some level promotes."""
        return frozenset[str]().union(*(level.promoted for level in self.levels))

    def cut(self, t: float) -> Cut:
        """The cut for the signal of a step at the model's time `t`: the one calibrated nearest to it."""
        return min(self.cuts, key=lambda cut: 0.0 if cut.t is None else abs(cut.t - t))

    def as_data(self) -> dict[str, Any]:
        """Plain data that `Strengths.of` reads: the plan's `adaptive`."""
        if self.note:
            return {"note": self.note}
        return {
            "per": self.per,
            "signal": self.signal,
            "begin": self.begin,
            "basis": self.basis,
            "cuts": [cut.as_data() for cut in self.cuts],
            "levels": [level.as_data() for level in self.levels],
        }

    @staticmethod
    def of(header: Mapping[str, Any]) -> Strengths | None:
        """What a plan's header holds; None where it was made without levels. PlanError for a damaged one."""
        row = header.get("adaptive")
        if row is None:
            return None
        try:
            if "note" in row:
                return Strengths("clip", "", 0, note=str(row["note"]))
            levels, cuts = tuple(map(Level.of, row["levels"])), tuple(map(Cut.of, row["cuts"]))
            found = Strengths(str(row["per"]), str(row["signal"]), int(row["begin"]), levels, cuts, str(row.get("basis", "")))
            if any(len(cut.at) != len(levels) - 1 for cut in cuts) or not 0 <= found.begin < len(levels):
                raise ValueError(f"{len(levels)} levels do not go with these cuts")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"the plan's adaptive levels are damaged: {error!r}", fix="make the plan again") from None
        return found

    def check(self, groups: Sequence[str]) -> None:
        """PlanError where a level promotes what has no second kernel."""
        for name in sorted(self.groups - set(groups)):
            close = nearest(name, groups, 1)
            hint = f"nearest: {close[0]}" if close else "no site of this plan can be promoted"
            what = f"a level of the plan promotes {name}, which has no second kernel"
            raise PlanError(what, tried=[hint], fix="make the plan again")

    def describe(self) -> list[str]:
        """Lines for people: how a level is chosen, and what each is."""
        if self.note:
            return [f"adaptive: off, {self.note}"]
        when = "once, by the first step" if self.per == "clip" else "before each step, by the last but one"
        rows = [f"adaptive: {len(self.levels)} levels, chosen {when}; {self.basis}"]
        for cut in self.cuts:
            at = "every step" if cut.t is None else f"t = {cut.t:.1f}"
            side = "<=" if cut.hard == "low" else ">="
            limits = ", ".join(f"level {number} where {self.signal} {side} {value:.4g}" for number, value in enumerate(cut.at, 1))
            rows.append(f"  {at}: {limits}" + ("" if cut.correlation is None else f" (rank correlation {cut.correlation:+.2f})"))
        for number, level in enumerate(self.levels):
            known = "" if level.ms is None else f", {level.ms:.4g} ms a step, error {level.error:.3g}, {level.psnr:.1f} dB"
            first = ", until the signal is known" if number == self.begin else ""
            rows.append(f"  level {number}: {len(level.promoted)} groups of call sites promoted{known}{first}")
        return rows
