"""Plans: which precision and kernel runs at every call site, and why. A document to read, save, diff and replay."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from turbort.errors import PlanError

PLAN_SCHEMA = 1
_INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Choice:
    """What runs at one call site.

    `path` is `stage/module.path` (`dit/blocks.0.self_attn.q.op`); `kernel` is `backend/name`; `emit` is the
    QTensor scheme in which the site hands over its output; `passed_over` maps candidates tried before to
    their refusals; `note` says why the precision was chosen when that is not simply the profile's word; `layout` is the physical
    layout of activations where that is not `row`, and `converts` are the conversions of what the site reads; `time_scales` is the
    kernel (`backend/name`) of the op `quantize_time` that gives what the site quantises, its output where it emits and its input
    otherwise, scales shared along time; None for a scale per token.
    """

    path: str
    op: str
    role: str
    precision: str
    kernel: str
    emit: str | None = None
    shapes: tuple[str, ...] = ()
    fallback: bool = False
    passed_over: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None
    layout: str | None = None
    converts: tuple[str, ...] = ()
    time_scales: str | None = None

    def body(self) -> dict[str, Any]:
        """Everything but the path, without empty fields, in a fixed order: the value of a plan line."""
        full: dict[str, Any] = {
            "op": self.op,
            "role": self.role,
            "precision": self.precision,
            "kernel": self.kernel,
            "emit": self.emit,
            "shapes": list(self.shapes),
            "fallback": self.fallback,
            "passed_over": dict(self.passed_over),
            "note": self.note,
            "layout": self.layout,
            "converts": list(self.converts),
            "time_scales": self.time_scales,
        }
        return {key: value for key, value in full.items() if value not in (None, [], {}, False)}

    @staticmethod
    def of(path: str, body: Mapping[str, Any]) -> Choice:
        return Choice(
            path=path,
            op=body["op"],
            role=body["role"],
            precision=body["precision"],
            kernel=body["kernel"],
            emit=body.get("emit"),
            shapes=tuple(body.get("shapes", ())),
            fallback=bool(body.get("fallback", False)),
            passed_over=dict(body.get("passed_over", {})),
            note=body.get("note"),
            layout=body.get("layout"),
            converts=tuple(body.get("converts", ())),
            time_scales=body.get("time_scales"),
        )


@dataclass(frozen=True)
class Plan:
    """The resolved choices for one model, profile and device.

    `header` holds what the plan was made for (model, profile, backend, device, size, frames, batch, attention,
    residual fusion, rehearsal); `choices` are in call order, one per call site.
    """

    header: Mapping[str, Any]
    choices: tuple[Choice, ...]

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.choices)

    def __getitem__(self, path: str) -> Choice:
        for choice in self.choices:
            if choice.path == path:
                return choice
        raise KeyError(path)

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of the plan's text: two equal digests mean the same decisions."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()[:12]

    @property
    def fallbacks(self) -> tuple[Choice, ...]:
        return tuple(choice for choice in self.choices if choice.fallback)

    def rows(self) -> list[dict[str, Any]]:
        """Folded lines for tables: sites that differ only in their block number share one row."""
        return [{"path": path, "sites": count, **body} for path, count, body in fold(self.choices)]

    def dumps(self) -> str:
        """The plan as YAML; `loads` gives back an equal plan."""
        sites = {path: body for path, _, body in fold(self.choices)}
        text: str = yaml.safe_dump(
            {"plan": PLAN_SCHEMA, **dict(self.header), "sites": sites}, sort_keys=False, width=1000, default_flow_style=None
        )
        return text

    @staticmethod
    def loads(text: str, source: str = "plan") -> Plan:
        """Read a plan; anything that is not one raises PlanError."""
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise PlanError(f"{source} is not YAML: {error}", fix="write a plan with `turbort plan -o plan.yaml`") from None
        if not isinstance(document, dict) or document.get("plan") != PLAN_SCHEMA or not isinstance(document.get("sites"), dict):
            raise PlanError(
                f"{source} is not a plan of schema {PLAN_SCHEMA}", fix="write a plan with `turbort plan -o plan.yaml`"
            )
        try:
            choices = [Choice.of(path, body) for key, body in document["sites"].items() for path in unfold(key)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"{source} has a damaged line: {error}", fix="write the plan again with `turbort plan`") from None
        header = {key: value for key, value in document.items() if key not in ("plan", "sites")}
        return Plan(header, tuple(choices))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan file, or `plan.yaml` in a folder."""
        file = Path(path)
        file = file / "plan.yaml" if file.is_dir() else file
        try:
            return Plan.loads(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read plan {file}: {error}", fix="give a file written by `turbort plan -o`") from None

    def diff(self, other: Plan) -> str:
        """Unified diff of two plans, one line per folded decision; empty when they decide the same."""
        mine, theirs = ([f"{line}\n" for line in plan.dumps().splitlines()] for plan in (self, other))
        return "".join(difflib.unified_diff(mine, theirs, "a", "b", n=0))

    def with_header(self, **values: Any) -> Plan:
        return replace(self, header={**self.header, **values})


def check_calibrated(plan: Plan, digests: Mapping[str, str]) -> None:
    """PlanError when a plan rests on the calibration of other weights than those of these digests."""
    theirs = plan.header.get("calibration", {}).get("checkpoints", {})
    pairs = {role: (theirs.get(role, digest), digest) for role, digest in digests.items()}
    lines = [f"{role}: calibrated {wanted}, loaded {digest}" for role, (wanted, digest) in pairs.items() if wanted != digest]
    if lines:
        raise PlanError(
            "the plan was calibrated for other weights",
            tried=lines,
            fix="calibrate these weights and plan again, or plan by rules",
        )


def fold(choices: Sequence[Choice]) -> list[tuple[str, int, dict[str, Any]]]:
    """Group sites that differ only in their first number: `blocks.{0-29}.norm`, with count and shared body."""
    groups: dict[tuple[str, str], list[int | None]] = {}
    bodies: dict[tuple[str, str], dict[str, Any]] = {}
    for choice in choices:
        match = _INDEX.search(choice.path)
        pattern = f"{choice.path[: match.start()]}.{{}}.{choice.path[match.end() :]}" if match else choice.path
        body = choice.body()
        key = (pattern, repr(body))
        groups.setdefault(key, []).append(int(match.group(1)) if match else None)
        bodies[key] = body
    return [(_name(pattern, numbers), len(numbers), bodies[pattern, text]) for (pattern, text), numbers in groups.items()]


def _name(pattern: str, numbers: Sequence[int | None]) -> str:
    found = [number for number in numbers if number is not None]
    return pattern.replace("{}", _ranges(found)) if found else pattern


def _ranges(numbers: Sequence[int]) -> str:
    """`[0,1,2,5]` -> `{0-2,5}`; one number stands without braces."""
    if len(numbers) == 1:
        return str(numbers[0])
    parts: list[str] = []
    start = previous = numbers[0]
    for number in [*numbers[1:], None]:
        if number is not None and number == previous + 1:
            previous = number
            continue
        parts.append(str(start) if start == previous else f"{start}-{previous}")
        if number is not None:
            start = previous = number
    return "{" + ",".join(parts) + "}"


def unfold(key: str) -> list[str]:
    """The paths that a folded key stands for."""
    match = re.search(r"\{([\d,\-]+)\}", key)
    if not match:
        return [key]
    numbers: list[int] = []
    for part in match.group(1).split(","):
        low, _, high = part.partition("-")
        numbers.extend(range(int(low), int(high or low) + 1))
    return [f"{key[: match.start()]}{number}{key[match.end() :]}" for number in numbers]
