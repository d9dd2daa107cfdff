"""Gates: which measured number must be on which side of which limit. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FEW_STEPS = 8
"""Trajectories up to this long stay together, so their videos can be compared pixel by pixel. Over more steps small
differences grow until two good videos of one prompt differ everywhere; PSNR then says nothing."""
ORACLE_DROP = 0.05
"""What a profile may lose of the oracle score, as a share of all objects."""
TEMPORAL_FLOOR = 0.25
"""8-bit levels added to both sides of a temporal ratio: below, a ratio compares rounding with rounding."""


@dataclass(frozen=True)
class Number:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the number, in `unit`; None where it could not be measured, and `note` says why.
        gate: the gate that it belongs to (`receipt`, `op`, `forward`, `video`, `temporal`, `oracle`), or an empty string.
        limit: what the gate asks for, as text (`>= 28`); empty where nothing is asked.
        passed: whether it passed; None where it is not judged.
    """

    name: str
    value: float | None
    unit: str = ""
    gate: str = ""
    limit: str = ""
    passed: bool | None = None
    note: str = ""

    def as_data(self) -> dict[str, Any]:
        """The number as plain data."""
        return {key: getattr(self, key) for key in self.__dataclass_fields__}


def at_least(name: str, value: float | None, limit: float, *, unit: str = "", gate: str, note: str = "") -> Number:
    """A number judged by a lower limit."""
    return Number(name, value, unit, gate, f">= {limit:g}", value is not None and value >= limit, note)


def at_most(name: str, value: float | None, limit: float, *, unit: str = "", gate: str, note: str = "") -> Number:
    """A number judged by an upper limit."""
    return Number(name, value, unit, gate, f"<= {limit:g}", value is not None and value <= limit, note)


def informative(name: str, value: float | None, *, unit: str = "", note: str = "") -> Number:
    """A number that no gate judges."""
    return Number(name, value, unit, note=note)


def ratio(value: float, baseline: float) -> float:
    """A temporal measure relative to the baseline's, both with `TEMPORAL_FLOOR` added."""
    return (value + TEMPORAL_FLOOR) / (baseline + TEMPORAL_FLOOR)


def all_passed(numbers: Sequence[Number]) -> bool:
    """Whether no judged number failed."""
    return all(number.passed is not False for number in numbers)
