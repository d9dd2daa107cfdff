"""The plane of time and error of `benchmarks.adaptive`: contenders, the line between uniform levels, and what chance would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from turbort.calibration import Calibration
from turbort.guard.strength import Strengths
from turbort.looks import ERROR, SIGNALS, cuts, spearman, trend
from turbort.plan import Plan

SCHEDULES = ("low", "high", "high first")
DRAWS = 2000


def summed(
    strengths: Strengths, advised: Plan, rows: list[dict[str, Any]], steps: int, calibration: Calibration
) -> dict[str, Any]:
    mse = {name: np.array([row["mse"][name] for row in rows]) for name in SCHEDULES}
    plane = Plane(strengths.levels[0].ms or 0.0, strengths.levels[-1].ms or 0.0, steps, mse)
    error = np.array([row[ERROR] for row in rows])
    (cut,) = strengths.cuts[0].at
    table = [plane.uniform("low", 0.0), plane.uniform("high", 1.0), plane.uniform("high first", 1 / steps)]
    if strengths.signal == ERROR:
        table += [
            plane.compared("adaptive", error >= cut),
            plane.compared("at their median", error >= np.median(error)),
        ]
    table += [plane.free(f"by {name}", by(name, rows, calibration)) for name in SIGNALS]
    half = largest(mse["low"] - mse["high"], len(rows) // 2)
    table.append(plane.point("hindsight", float(half.mean()), half, "low"))
    against = {name: [row[name] for row in rows] for name in (*SIGNALS, ERROR)}
    return {
        "advice": Strengths.of(advised.header).describe(),  # type: ignore[union-attr]
        "levels": [{**level.as_data(), "promoted": len(level.promoted)} for level in strengths.levels],
        "cuts": [cut.as_data() for cut in strengths.cuts],
        "signal": strengths.signal,
        "contenders": table,
        "correlation": {
            name: {target: round(spearman(values, mse[target].tolist()), 3) for target in SCHEDULES}
            for name, values in against.items()
        },
        "clips": rows,
    }


@dataclass(frozen=True)
class Plane:
    """Predicted ms of a step at either level, and the pixel errors of every clip under each schedule."""

    low: float
    high: float
    steps: int
    mse: dict[str, np.ndarray]

    def uniform(self, name: str, spent: float) -> dict[str, Any]:
        return contender(name, self.low + (self.high - self.low) * spent, spent, self.mse[name], self.mse)

    def free(self, name: str, mask: np.ndarray) -> dict[str, Any]:
        """Clips in the mask at the strong level throughout, the others in their first step."""
        return self.point(name, 1 / self.steps + (1 - 1 / self.steps) * float(mask.mean()), mask, "high first")

    def compared(self, name: str, mask: np.ndarray) -> dict[str, Any]:
        """Either level throughout, and the first step at the other one, too, to compare them."""
        extra = np.where(mask, self.low, self.high).mean() / (self.steps * (self.high - self.low))
        return self.point(name, float(mask.mean() + extra), mask, "low")

    def point(self, name: str, spent: float, mask: np.ndarray, weak: str) -> dict[str, Any]:
        """A contender, with what it gains over as many clips drawn by lot: what is left when its cost is set aside."""
        mine, share = np.where(mask, self.mse["high"], self.mse[weak]), float(mask.mean())
        found = contender(name, self.low + (self.high - self.low) * spent, spent, mine, self.mse)
        lot = share * db(self.mse["high"]) + (1 - share) * db(self.mse[weak])
        lot_mse = share * self.mse["high"] + (1 - share) * self.mse[weak]
        more = {"strong": share, "over_lot_db": interval(db(mine) - lot), "mse_over_lot": float(mine.mean() / lot_mse.mean())}
        return {**found, **more, "mse_over_lot": round(more["mse_over_lot"], 3)}  # type: ignore[arg-type]


def by(signal: str, rows: list[dict[str, Any]], calibration: Calibration) -> np.ndarray:
    """The clips that get the strong level when a signal's calibrated median decides, advised by the calibration or not."""
    found = trend(calibration.videos, signal, 1, "w8a8")
    assert found is not None
    (at,) = cuts(calibration.videos, found, found.hard, [0.5])
    values = np.array([row[signal] for row in rows])
    return values <= at if found.hard == "low" else values >= at


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """A mask of the `count` largest."""
    mask = np.zeros(len(values), bool)
    mask[np.argsort(-values)[:count]] = True
    return mask


def db(values: np.ndarray) -> np.ndarray:
    return -10 * np.log10(values)


def contender(name: str, ms: float, spent: float, mine: np.ndarray, mse: dict[str, np.ndarray]) -> dict[str, Any]:
    """A point on the plane, and how far it lies above the line between the uniform levels at its time, in dB and in MSE."""
    line = (1 - spent) * db(mse["low"]) + spent * db(mse["high"])
    line_mse = (1 - spent) * mse["low"] + spent * mse["high"]
    return {
        "name": name,
        "ms": round(ms, 4),
        "psnr": round(float(db(mine).mean()), 3),
        "worst_psnr": round(float(db(mine).min()), 2),
        "mse": float(f"{mine.mean():.4g}"),
        "above_line_db": interval(db(mine) - line),
        "mse_over_line": round(float(mine.mean() / line_mse.mean()), 3),
    }


def interval(differences: np.ndarray) -> list[float]:
    """Mean over clips, and the 5 % and 95 % points of it over clips drawn anew."""
    draw = np.random.default_rng(0)
    means = [differences[draw.integers(0, len(differences), len(differences))].mean() for _ in range(DRAWS)]
    return [round(float(value), 3) for value in (differences.mean(), *np.quantile(means, (0.05, 0.95)))]


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: " + "\n".join(found["advice"]))
    for row in found["contenders"]:
        place = f"{row['ms']:7.2f} ms  {row['psnr']:6.2f} dB (worst {row['worst_psnr']:5.2f})  mse {row['mse']:.3g}"
        mean, least, most = row["above_line_db"]
        line = f"above the line {mean:+.2f} dB [{least:+.2f}, {most:+.2f}], mse x {row['mse_over_line']:.2f}"
        lot = ""
        if "over_lot_db" in row:
            mean, least, most = row["over_lot_db"]
            lot = f"; {row['strong']:.0%} strong, over a lot {mean:+.2f} dB [{least:+.2f}, {most:+.2f}]"
        print(f"  {row['name']:16} {place}  {line}{lot}")
    print(f"  rank correlations with the error of each schedule: {found['correlation']}", flush=True)
