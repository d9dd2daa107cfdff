"""The plane of time and error of `benchmarks.adaptive`: contenders, the line between uniform levels, and what chance would do."""

from __future__ import annotations

import statistics
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
    low, high = (strengths.levels[i].ms or 0.0 for i in (0, -1))
    chosen = np.array([row["levels"][1] > 0 for row in rows])
    mse = {name: np.array([row["mse"][name] for row in rows]) for name in SCHEDULES}
    hindsight = largest(mse["high first"] - mse["high"], int(chosen.sum()))
    spent = {"low": 0.0, "high": 1.0, "high first": 1 / steps}
    picked = dict(mse)
    # Comparing levels costs the weak level's first step, too; here as a share of the time that the levels lie apart.
    compared = low / (steps * (high - low))
    masks = {"adaptive": chosen, "hindsight": hindsight, **{f"by {name}": by(name, rows, calibration) for name in SIGNALS}}
    for name, mask in masks.items():
        picked[name] = np.where(mask, mse["high"], mse["high first"])
        extra = compared if name == "adaptive" and strengths.signal == ERROR else 0.0
        spent[name] = 1 / steps + (1 - 1 / steps) * float(mask.mean()) + extra
    table = [contender(name, low + (high - low) * spent[name], spent[name], values, mse) for name, values in picked.items()]
    share = float(chosen.mean())
    lot = share * db(mse["high"]) + (1 - share) * db(mse["high first"])
    against = {name: np.array([row[name] for row in rows]) for name in (*SIGNALS, ERROR)}
    return {
        "advice": Strengths.of(advised.header).describe(),  # type: ignore[union-attr]
        "levels": [{**level.as_data(), "promoted": len(level.promoted)} for level in strengths.levels],
        "cuts": [cut.as_data() for cut in strengths.cuts],
        "signal": strengths.signal,
        "contenders": table,
        "adaptive_over_lot_db": interval(np.where(chosen, db(mse["high"]), db(mse["high first"])) - lot),
        "correlation": {
            name: {target: round(spearman(values.tolist(), mse[target].tolist()), 3) for target in ("low", "high first", "high")}
            for name, values in against.items()
        },
        "clips": rows,
    }


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
        mean, least, most = row["above_line_db"]
        place = f"{row['ms']:8.3f} ms  {row['psnr']:6.2f} dB (worst {row['worst_psnr']:5.2f})  mse {row['mse']:.3g}"
        above = f"above the line {mean:+.2f} dB [{least:+.2f}, {most:+.2f}], mse x {row['mse_over_line']:.2f}"
        print(f"  {row['name']:11} {place}  {above}")
    print(f"  adaptive over a lot of as many clips: {found['adaptive_over_lot_db']}")
    print(f"  rank correlations with the error of each schedule: {found['correlation']}")
    one, two = (statistics.mean(row["levels"][1] > 0 for row in found["clips"] if row["objects"] == n) for n in (1, 2))
    print(f"  strong level: {one:.0%} of clips with one object, {two:.0%} with two", flush=True)
