"""What to keep where: residencies from the fastest to the smallest, the one that fits, and the next one down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from turbort.errors import UnavailableError
from turbort.memory import MARGIN, Forecast, Residency, fastest, forecast
from turbort.memory_beside import Second
from turbort.precision import PRECISIONS
from turbort.units import format_bytes

if TYPE_CHECKING:
    from turbort.models.spec import ModelSpec
    from turbort.plan import Plan
    from turbort.profile import Profile

TILE = (256, 256)
"""Height and width in pixels of VAE tiles, where the profile names none."""
WORTH = 0.99
"""A step down after running out of memory must bring the stage that failed to this share of its forecast, or less."""

CAPTURED_ROOM = 0.85
"""Share of the budget up to which a captured step is trusted: memory ran out at 0.96 (14B in 24 GiB) and 0.98 (1.3B in 8)."""

Saving = Callable[[Residency], Residency]


def savings(plan: Plan, spec: ModelSpec, profile: Profile, *, least: int = 1) -> Iterator[Saving]:
    """Ways to need less, the cheapest first; each returns its argument when it has nothing (more) to save.

    Steps that are not captured, text before the transformer, smaller VAE chunks, text in int8, one expert at a time, smaller
    batches down to `least`, VAE tiles (which change pixels near their seams), blocks streamed from the host. Those that the
    profile forbids (`memory.offload: none`) are left out.

    A captured step saves launches, for which a model that is large for its device hardly waits: on an H100 four steps took 0.62
    to 0.71 s without and 0.61 to 0.62 with for Wan 1.3B, and 3.59 s and 3.56 for 14B. What it keeps to itself breaks the device's
    memory into pieces.
    """
    allowed = profile.memory.offload
    may = {name: allowed == "auto" or (isinstance(allowed, tuple) and name in allowed) for name in ("text", "dit", "vae")}
    width, height = plan.header["size"]
    if plan.header.get("graph") == "captured":
        yield lambda row: replace(row, eager=True)
    if may["text"]:
        yield lambda row: replace(row, text="first")
    yield lambda row: replace(row, chunk=max(1, row.chunk // 2))
    if may["text"] and PRECISIONS[profile.precision.text].kind == "float":
        yield lambda row: replace(row, text_scheme="int8-channel")
    if may["dit"] and spec.experts:
        yield lambda row: replace(row, experts="swap")
    yield lambda row: replace(row, batch=row.batch // 2) if row.batch // 2 >= least else row
    if may["vae"] and width * height > 2 * TILE[0] * TILE[1]:
        yield lambda row: replace(row, tile=row.tile or TILE)
    if may["dit"]:
        yield lambda row: replace(row, offload=True)


def ladder(plan: Plan, spec: ModelSpec, profile: Profile, *, least: int = 1) -> list[Residency]:
    """Residencies from the fastest to the smallest; each step adds one saving to those before it."""
    rows = [fastest(plan, spec, profile.memory.vae_tile)]
    for saving in savings(plan, spec, profile, least=least):
        while (step := saving(rows[-1])) != rows[-1]:
            rows.append(step)
    return rows


def choose(plan: Plan, spec: ModelSpec, profile: Profile, budget: int | None, *, least: int = 1) -> Forecast:
    """The fastest residency whose forecast fits into `budget` bytes.

    `least` is the smallest batch that makes sense (2 for a guidance pair that must run together). Raises
    UnavailableError with the table of the smallest one when nothing fits.
    """
    rows = ladder(plan, spec, profile, least=least)
    made = [replace(forecast(plan, spec, profile, row), budget=budget) for row in rows]
    found = next((row for row in made if _roomy(row)), None)
    if found is not None:
        # A later step may have made an earlier saving needless; those that cost most are taken back first.
        for name in ("tile", "batch", "text_scheme", "experts", "chunk", "text"):
            residency = replace(found.residency, **{name: getattr(rows[0], name)})
            without = replace(forecast(plan, spec, profile, residency), budget=budget)
            found = without if without.fits else found
        captured = replace(forecast(plan, spec, profile, replace(found.residency, eager=False)), budget=budget)
        return captured if _roomy(captured) else found
    smallest = min(made, key=lambda row: row.peak)
    width, height = plan.header["size"]
    what = f"{spec.name} at {width}x{height}, {plan.header['frames']} frames"
    raise UnavailableError(
        f"{what} needs {format_bytes(smallest.needed)}, and {format_bytes(budget)} are there",
        tried=[f"smallest way: {smallest.residency.describe(spec)}", *_lines(smallest)],
        fix="choose a smaller size, fewer frames, a smaller model, or a profile with quantised weights",
    )


def _roomy(made: Forecast) -> bool:
    """Whether captured steps fit, with room to spare in the stages that share the device with what a captured step keeps."""
    beside = max((stage.reserved for stage in made.stages if stage.captured), default=0)
    return made.fits and (made.budget is None or beside * MARGIN <= CAPTURED_ROOM * made.budget)


def step_down(plan: Plan, spec: ModelSpec, profile: Profile, now: Forecast, stage: str, second: Second | None = None) -> Forecast:
    """The next residency below `now` in which `stage`, which ran out of memory, needs noticeably less.

    Raises UnavailableError with the stage's forecast when nothing is left to save.
    """
    failed = now.stage(stage)
    for saving in savings(plan, spec, profile):
        made = replace(forecast(plan, spec, profile, saving(now.residency), second), budget=now.budget)
        if made.stage(stage).reserved <= WORTH * failed.reserved:
            return made
    raise UnavailableError(
        f"the device ran out of memory in stage {stage}, and nothing is left to save",
        tried=[now.residency.describe(spec), *_lines(now)],
        fix="choose a smaller size or fewer frames, free the device, or name what is there with --memory-budget",
    )


def _lines(made: Forecast) -> list[str]:
    return [", ".join(f"{key} {value}" for key, value in stage.row().items()) for stage in made.stages]
