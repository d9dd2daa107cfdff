"""The error-time plane as text, and as a picture where matplotlib is there."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from turbort.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from turbort.pareto import Pareto, Point

WIDTH, HEIGHT = 72, 18
SUFFIXES = (".png", ".svg", ".pdf")


def draw(plane: Pareto) -> str:
    """Time to the right, log10 of error upwards: `.` frontier, letters uniform choices, `*` the chosen point."""
    letters = [chr(ord("a") + index) for index in range(len(plane.uniform))]
    marks = [(point, ".") for point in plane.front]
    marks += [(row.uniform, letter) for row, letter in zip(plane.uniform, letters, strict=True)]
    marks += [(plane.chosen, "*")]
    least = min((point.error for point, _ in marks if point.error > 0), default=1e-12)
    floor = math.floor(math.log10(least)) - 0.5
    heights = [_height(point, floor) for point, _ in marks]
    times = [point.ms for point, _ in marks]
    low, high, bottom, top = min(times), max(times), min(heights), max(heights)
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    for (point, mark), height in zip(marks, heights, strict=True):
        column = round((WIDTH - 1) * (point.ms - low) / ((high - low) or 1.0))
        row = round((HEIGHT - 1) * (top - height) / ((top - bottom) or 1.0))
        grid[row][column] = mark
    lines = [f"{_label(top - (top - bottom) * row / (HEIGHT - 1), floor):>8} |{''.join(cells)}" for row, cells in enumerate(grid)]
    lines += [" " * 9 + "+" + "-" * WIDTH, f"{'':10}{low:<.4g} ms a step{'':{WIDTH - 26}}{high:>.4g} ms"]
    legend = ", ".join(f"{letter} {row.uniform.name}" for letter, row in zip(letters, plane.uniform, strict=True))
    return "\n".join([*lines, f"{'':10}* chosen, . frontier, {legend}"])


def _height(point: Point, floor: float) -> float:
    return math.log10(point.error) if point.error > 0 else floor


def _label(height: float, floor: float) -> str:
    return "0" if height <= floor else f"{10**height:.0e}"


def check_plot(path: Path) -> None:
    """InputError for a suffix that cannot be drawn, UnavailableError without matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot draw {path.name}", tried=[f"suffixes: {', '.join(SUFFIXES)}"], fix="use --plot pareto.svg")
    if find_spec("matplotlib") is None:
        raise UnavailableError(
            "--plot needs matplotlib", fix="pip install matplotlib, or leave out --plot: the terminal shows it"
        )


def save(plane: Pareto, path: Path, title: str) -> None:
    """Write the plane as a picture."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    shown = [point for point in plane.front if point.error > 0]
    axes.plot([p.ms for p in shown], [p.error for p in shown], ".-", color="0.6", label="frontier")
    for row in plane.uniform:
        if row.uniform.error > 0:
            axes.plot(row.uniform.ms, row.uniform.error, "o", label=row.uniform.name)
    axes.plot(plane.chosen.ms, max(plane.chosen.error, 1e-12), "*", markersize=16, color="k", label="chosen")
    axes.axhline(plane.budget, color="0.8", linestyle="--", label="budget")
    axes.set(xlabel="predicted ms a step", ylabel="predicted relative error", yscale="log", title=title)
    axes.legend()
    figure.savefig(path)
