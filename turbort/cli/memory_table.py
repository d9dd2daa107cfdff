"""The memory forecast as people read it, and the options of the command line that decide it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from turbort.cli import ui

if TYPE_CHECKING:
    from turbort.cli.choose import Choice
    from turbort.memory import Forecast
    from turbort.models.spec import ModelSpec
    from turbort.plan import Plan

COLUMNS = ("stage", "weights", "kept", "activations", "unusable", "reserved")


def parse_budget(text: str | None) -> int | None:
    """`12GiB` as bytes; InputError for anything else."""
    from turbort.errors import InputError
    from turbort.units import parse_bytes

    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise InputError(f"--memory-budget: {error}", fix="write --memory-budget 12GiB") from None


def within(choice: Choice, budget: int | None) -> Choice:
    """The same choice with the profile's weights quantised where the memory is below its `tier_boundary`."""
    from turbort.memory import budget_of, tiered

    profile = tiered(choice.profile, budget_of(choice.target.device, choice.profile, budget))
    return choice if profile is choice.profile else replace(choice, profile=profile)


def forecast_of(choice: Choice, spec: ModelSpec, plan: Plan, budget: int | None) -> Forecast:
    """The residency that a run would choose; UnavailableError when nothing fits."""
    from turbort.memory import budget_of
    from turbort.memory_ladder import choose

    return choose(plan, spec, choice.profile, budget_of(choice.target.device, choice.profile, budget))


def memory_table(made: Forecast, spec: ModelSpec, *, stderr: bool = False) -> None:
    """Stages with their bytes, then what stays where."""
    from turbort.units import format_bytes

    rows: list[dict[str, Any]] = [dict(stage.row()) for stage in made.stages]
    worst = max(made.stages, key=lambda stage: stage.reserved).name
    title = f"memory: {format_bytes(made.needed)} needed with its margin"
    title += f", {format_bytes(made.budget)} there" if made.budget is not None else ""
    ui.table(rows, COLUMNS, title=title, styles=lambda row: "warn" if row["stage"] == worst else None, stderr=stderr)
    line = made.residency.describe(spec)
    ui.say(line) if stderr else ui.result(line)
