"""The frontier of predicted time against predicted error, and where uniform choices lie beside it. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turbort.assign import Assignment, Problem
from turbort.calibration import Calibration
from turbort.precision import LINEAR


@dataclass(frozen=True)
class Point:
    """One assignment on the plane: milliseconds per step, relative error of the model's output, dB of a whole video."""

    name: str
    ms: float
    error: float
    psnr: float

    def row(self) -> dict[str, Any]:
        """As a line of a table."""
        return {"plan": self.name, "ms a step": round(self.ms, 4), "error": f"{self.error:.3g}", "PSNR": f"{self.psnr:.1f} dB"}


@dataclass(frozen=True)
class Beaten:
    """A uniform choice and the frontier beside it: the fastest with no more error, and the least error in no more time."""

    uniform: Point
    faster: Point | None
    safer: Point | None

    def row(self) -> dict[str, Any]:
        """As a line of a table, gains in percent."""
        row = self.uniform.row()
        if self.faster is not None:
            row["same error"] = f"{self.faster.ms:.4g} ms ({_change(self.faster.ms, self.uniform.ms)})"
        if self.safer is not None:
            row["same time"] = f"error {self.safer.error:.3g} ({_change(self.safer.error, self.uniform.error)})"
        return row


@dataclass(frozen=True)
class Pareto:
    """The frontier from the fastest to the safest, the chosen point on it, and every uniform choice."""

    front: tuple[Point, ...]
    chosen: Point
    uniform: tuple[Beaten, ...]
    budget: float

    def as_data(self) -> dict[str, Any]:
        """Everything as plain data."""

        def one(point: Point | None) -> dict[str, Any] | None:
            return None if point is None else {"plan": point.name, "ms": point.ms, "error": point.error, "psnr": point.psnr}

        rows = [{"uniform": one(row.uniform), "same_error": one(row.faster), "same_time": one(row.safer)} for row in self.uniform]
        return {
            "budget": self.budget,
            "chosen": one(self.chosen),
            "uniform": rows,
            "frontier": [one(point) for point in self.front],
        }


def pareto(problem: Problem, calibration: Calibration, error: float, memory: float) -> Pareto:
    """Frontier, chosen point (the fastest within `error` and `memory`) and the uniform choices of every linear precision."""

    def point(name: str, found: Assignment) -> Point:
        return Point(name, found.seconds * 1e3, found.error, calibration.psnr_at(found.error))

    front = tuple(point("frontier", found) for found in problem.frontier())
    rows = []
    for precision in (problem.compute, *LINEAR):
        found = problem.uniform(precision)
        if found is not None:
            rows.append(_beside(point(f"uniform {precision}", found), front))
    return Pareto(front, point("chosen", problem.solve(error, memory)), tuple(rows), error)


def _beside(uniform: Point, front: Sequence[Point]) -> Beaten:
    room = 1 + 1e-9
    faster = min((p for p in front if p.error <= uniform.error * room), key=lambda p: p.ms, default=None)
    safer = min((p for p in front if p.ms <= uniform.ms * room), key=lambda p: p.error, default=None)
    return Beaten(uniform, faster, safer)


def _change(new: float, old: float) -> str:
    return "0 %" if not old else f"{100 * (new / old - 1):+.0f} %"
