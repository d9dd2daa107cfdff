"""Results of the suite: one per case, with its outcome in one word and one sign."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Outcome(Enum):
    """What became of a case. FAIL and FIXED make the suite fail."""

    PASS = "pass"
    FAIL = "fail"
    REJECTED = "rejected"
    UNSUPPORTED = "unsupported"
    KNOWN = "known"
    FIXED = "fixed"
    QUARANTINED = "quarantined"

    @property
    def sign(self) -> str:
        """One character for tables."""
        return _SIGNS[self]

    @property
    def bad(self) -> bool:
        """Whether it makes the suite fail."""
        return self in (Outcome.FAIL, Outcome.FIXED)


_SIGNS = {
    Outcome.PASS: "✓",
    Outcome.FAIL: "✗",
    Outcome.REJECTED: "∅",
    Outcome.UNSUPPORTED: "–",
    Outcome.KNOWN: "x",
    Outcome.FIXED: "!",
    Outcome.QUARANTINED: "q",
}


@dataclass(frozen=True)
class Result:
    """The outcome of one case.

    `check` names the rule that decided a failure (`budget`, `determinism`, ...), `also` the other rules that the
    case broke; `message` explains every outcome but a pass; `nmse` and `budget` are there when values were compared.
    """

    id: str
    outcome: Outcome
    check: str | None = None
    also: tuple[str, ...] = ()
    message: str = ""
    nmse: float | None = None
    budget: float | None = None
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """The JSON form, without empty fields."""
        full = {
            "id": self.id,
            "outcome": self.outcome.value,
            "check": self.check,
            "also": list(self.also),
            "message": self.message,
            "nmse": self.nmse,
            "budget": self.budget,
            "seconds": round(self.seconds, 4),
        }
        return {key: value for key, value in full.items() if value not in (None, "", [])}


def counts(results: Iterable[Result]) -> dict[str, int]:
    """Number of results per outcome, in the order of `Outcome`, without zeros."""
    seen = Counter(result.outcome for result in results)
    return {outcome.value: seen[outcome] for outcome in Outcome if seen[outcome]}
