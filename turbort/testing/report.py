"""Results grouped for people: one row per op, kernel and precision, as a table or in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from turbort.testing.result import Outcome, Result


@dataclass
class Group:
    """All results of one kernel at one precision (or one check of the backend itself)."""

    op: str
    kernel: str
    precision: str
    results: list[Result] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        """How many cases ended that way."""
        return sum(result.outcome is outcome for result in self.results)

    @property
    def outcomes(self) -> str:
        """Signs with counts, such as `✓ 19  ∅ 2`."""
        return "  ".join(f"{one.sign} {count}" for one in Outcome if (count := self.count(one)))

    @property
    def bad(self) -> bool:
        """Whether the group makes the suite fail."""
        return any(result.outcome.bad for result in self.results)

    @property
    def closest(self) -> Result | None:
        """The case that came nearest to its budget."""
        measured = [result for result in self.results if result.nmse is not None and result.budget]
        return max(measured, key=lambda result: (result.nmse or 0.0) / (result.budget or 1.0), default=None)

    def row(self) -> dict[str, str | int]:
        """Cells by column name."""
        near = self.closest
        return {
            "op": self.op,
            "kernel": self.kernel,
            "precision": self.precision,
            "cases": self.outcomes,
            "error": f"{near.nmse:.1e}" if near else "",
            "budget": f"{near.budget:.1e}" if near else "",
            "nearest to its budget": near.id.rpartition("/")[2] if near else "",
        }


COLUMNS = ("op", "kernel", "precision", "cases", "error", "budget", "nearest to its budget")


def grouped(results: Iterable[Result]) -> list[Group]:
    """Groups in the order of their names, checks of the backend first."""
    found: dict[tuple[str, str, str], Group] = {}
    for result in results:
        op, kernel, precision = (*result.id.split("/")[:3], "", "")[:3]
        found.setdefault((op, kernel, precision), Group(op, kernel, precision)).results.append(result)
    return [found[key] for key in sorted(found, key=lambda key: (key[0] not in ("backend", "ledger"), key))]


def markdown(title: str, results: Iterable[Result]) -> str:
    """A support table to publish."""
    lines = [title, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(group.row()[column]) for column in COLUMNS) + " |" for group in grouped(results)]
    signs = ", ".join(f"{one.sign} {one.value}" for one in Outcome)
    return "\n".join([*lines, "", f"{signs}. Error and budget are nmse against fp64."])
