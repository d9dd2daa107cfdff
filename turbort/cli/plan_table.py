"""A plan as one grouped table: sites of a stage that run the same way share a line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from turbort.cli import ui
from turbort.cli.measured import remarks

if TYPE_CHECKING:
    from turbort.plan import Plan

COLUMNS = ("stage", "op", "role", "precision", "kernel", "sites", "emits", "layout", "converts", "note")
SPARE = ("converts", "layout", "emits")  # what a narrow terminal goes without; a note may say `fallback` and stays
STAGES = {"text": 0, "dit": 1, "vae": 2}
# Roles that a reader can take together: the parts of one attention, the two halves of a feed-forward.
_FAMILIES = {
    "self.qkv": "self",
    "self.out": "self",
    "cross.q": "cross",
    "cross.kv": "cross",
    "cross.out": "cross",
    "ffn.in": "ffn",
    "ffn.out": "ffn",
}


def grouped(plan: Plan, measured: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Rows for `plan_table` and `--json`: counts of sites by stage, op, role, precision, kernel and what is handed over.

    `measured` are remarks by path; sites with different ones have different rows.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for choice in plan:
        stage = choice.path.partition("/")[0]
        remark = (measured or {}).get(choice.path)
        note = ", ".join(filter(None, ("fallback" if choice.fallback else None, choice.note, remark)))
        role = _FAMILIES.get(choice.role, choice.role)
        converts = ", ".join(choice.converts) or None
        key = (stage, choice.op, role, choice.precision, choice.kernel, choice.emit, choice.layout, converts, note)
        row = groups.setdefault(key, dict(zip(COLUMNS, (*key[:5], 0, *key[5:8], note or None), strict=True)))
        row["sites"] += 1
    return sorted(groups.values(), key=lambda row: STAGES.get(row["stage"], len(STAGES)))


def title(header: Mapping[str, Any], digest: str) -> str:
    """One line that says what a plan is for."""
    width, height = header["size"]
    text = f"plan {digest}: {header['model']}, {width}x{height}, {header['frames']} frames, profile {header['profile']}"
    where = f"on {header['device']} ({header['backend']})"
    if header["backend"] == "null":
        where = "planned without a device"
    elif header.get("rehearsal"):
        where += f", rehearsal of {header['profile']}: real numerics, meaningless timings"
    return f"{text}, {where}"


def plan_table(plan: Plan, *, sites: bool = False, stderr: bool = False) -> None:
    """Print a plan, grouped, or with one line per folded site and every refusal."""
    heading = title(plan.header, plan.digest)
    for note in plan.header.get("notes", ()):
        ui.say(note, "warn")
    if plan.fallbacks and plan.header.get("fallback") == "warn":
        ui.warn(f"{len(plan.fallbacks)} call sites run on something else than the profile asks: marked `fallback`")
    measured = remarks(plan)
    if not sites:
        rows = _once_per_stage(grouped(plan, measured))
        ui.table(rows, COLUMNS, title=heading, styles=_style, stderr=stderr, spare=SPARE)
        _say_levels(plan)
        return
    each = [
        {**row, "shapes": " ".join(row.get("shapes", ())), "emits": row.get("emit"), "note": _why(row, measured)}
        for row in plan.rows()
    ]
    columns = ("path", "op", "precision", "kernel", "shapes", "emits", "layout", "converts", "note")
    ui.table(each, columns, title=heading, styles=_style, stderr=stderr, spare=("shapes", *SPARE))
    _say_levels(plan)


def _say_levels(plan: Plan) -> None:
    from turbort.guard.strength import Strengths

    strengths = Strengths.of(plan.header)
    for line in strengths.describe() if strengths else ():
        ui.say(line, "warn" if strengths and strengths.note else None)


def _once_per_stage(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stage's name only on its first line, which reads as a group."""
    previous, shown = None, []
    for row in rows:
        shown.append({**row, "stage": row["stage"] if row["stage"] != previous else ""})
        previous = row["stage"]
    return shown


def _why(row: Mapping[str, Any], measured: Mapping[str, str]) -> str:
    # `blocks.{0-29}.norm` stands for sites of one shape: the first speaks for all.
    remark = measured.get(re.sub(r"\{(\d+)[^}]*\}", r"\1", row["path"]))
    passed = [f"not {name}: {reason}" for name, reason in row.get("passed_over", {}).items()]
    return "; ".join(filter(None, (row.get("note"), remark, *passed)))


def _style(row: Mapping[str, Any]) -> str | None:
    return "warn" if row.get("fallback") or "fallback" in (row.get("note") or "") else None


def show_plans(plans: Sequence[Plan], jobs: int, *, json: bool) -> None:
    """What a dry run shows: one table per shape of job, or everything as JSON."""
    if json:
        rows = [{"digest": plan.digest, **plan.header, "groups": grouped(plan)} for plan in plans]
        ui.emit_json({"plans": rows, "jobs": jobs})
        return
    for plan in plans:
        plan_table(plan)
