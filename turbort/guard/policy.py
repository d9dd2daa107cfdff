"""Policies: which sites were promoted at which step, as a file that replays without monitoring. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from turbort.errors import InputError, nearest

POLICY_SCHEMA = 1


@dataclass(frozen=True)
class Policy:
    """Promoted groups per transformer and step.

    `roles` maps a transformer (`dit`, or an expert) to one set of group names per step of its own, the first step first;
    steps beyond the last keep its set. `plan` is the digest of the plan that it was recorded under. `clips` hold the same per
    video, in order, where strength levels made them differ: a replay takes each video's own, and for further ones what any had.
    """

    model: str
    plan: str
    roles: Mapping[str, tuple[frozenset[str], ...]]
    clips: Mapping[str, tuple[tuple[frozenset[str], ...], ...]] = field(default_factory=dict)

    def at(self, role: str, step: int, clip: int = 0) -> frozenset[str]:
        """What is promoted at a step, counted from 1, of a clip, counted from 0."""
        each = self.clips.get(role, ())
        steps = each[clip] if clip < len(each) else self.roles.get(role, ())
        return steps[min(step, len(steps)) - 1] if steps else frozenset()

    def dumps(self) -> str:
        """The policy as YAML: one entry where the set changes."""
        document: dict[str, Any] = {"policy": POLICY_SCHEMA, "model": self.model, "plan": self.plan, "roles": {}}
        document["roles"] = {role: _rows(steps) for role, steps in self.roles.items()}
        if self.clips:
            document["clips"] = {role: [_rows(steps) for steps in each] for role, each in self.clips.items()}
        text: str = yaml.safe_dump(document, sort_keys=False, width=120)
        return text

    def check(self, model: str, plan: str, groups: Sequence[str]) -> None:
        """InputError where the policy belongs to another model or plan, or names sites that have no second kernel."""
        fix = "record it again with `turbort run --record-policy`"
        if (self.model, self.plan) != (model, plan):
            raise InputError(
                f"the policy was recorded for {self.model} under plan {self.plan}", tried=[f"this is {model}, {plan}"], fix=fix
            )
        every = [*self.roles.values(), *(steps for each in self.clips.values() for steps in each)]
        for name in sorted({name for steps in every for names in steps for name in names} - set(groups)):
            close = nearest(name, groups, 1)
            hint = f"nearest: {close[0]}" if close else "no site of this plan can be promoted"
            raise InputError(f"the policy promotes {name}, which has no second kernel here", tried=[hint], fix=fix)

    @staticmethod
    def load(path: Path) -> Policy:
        """Read a policy file; InputError for anything else."""
        fix = "give a file written by `turbort run --record-policy`"
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
            if document["policy"] != POLICY_SCHEMA:
                raise InputError(f"{path} is a policy of schema {document['policy']}, not {POLICY_SCHEMA}", fix=fix)
            roles = {str(role): _steps(rows) for role, rows in document["roles"].items()}
            clips = {str(role): tuple(map(_steps, each)) for role, each in document.get("clips", {}).items()}
            return Policy(str(document["model"]), str(document["plan"]), roles, clips)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"cannot read policy {path}: {error}", fix=fix) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is not a policy: {error!r}", fix=fix) from None


def _rows(steps: Sequence[frozenset[str]]) -> list[dict[str, Any]]:
    """One entry where the set changes."""
    changes = [i for i, names in enumerate(steps) if i == 0 or names != steps[i - 1]]
    return [{"from_step": i + 1, "promoted": sorted(steps[i])} for i in changes]


def _steps(rows: Sequence[Mapping[str, Any]]) -> tuple[frozenset[str], ...]:
    steps: list[frozenset[str]] = []
    for row in rows:
        start = int(row["from_step"])
        if start < 1 or start <= len(steps):
            raise ValueError(f"from_step {start} is out of order")
        steps += [steps[-1] if steps else frozenset()] * (start - 1 - len(steps))
        steps.append(frozenset(map(str, row["promoted"])))
    return tuple(steps)


def merged(first: Sequence[frozenset[str]], second: Sequence[frozenset[str]]) -> tuple[frozenset[str], ...]:
    """Per step what either promotes: a policy for several videos is never less careful than any of them needed."""
    length = max(len(first), len(second))

    def at(steps: Sequence[frozenset[str]], i: int) -> frozenset[str]:
        return steps[min(i, len(steps) - 1)] if steps else frozenset()

    return tuple(at(first, i) | at(second, i) for i in range(length))
