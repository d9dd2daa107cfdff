"""`turbort run --record-policy` and `--policy`: what the outlier monitor did, written down and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbort.cli import ui
from turbort.errors import InputError

if TYPE_CHECKING:
    from turbort.guard.policy import Policy
    from turbort.session import Session


def read(replayed: Path | None, recorded: Path | None, shapes: Sequence[Any]) -> Policy | None:
    """The policy to replay; InputError for both at once, or for jobs of several shapes, which have a plan each."""
    if replayed and recorded:
        raise InputError("--policy and --record-policy exclude each other: a replay finds nothing out", fix="give one of them")
    given = replayed or recorded
    if given and len(shapes) > 1:
        raise InputError(f"a policy belongs to one plan, and these jobs have {len(shapes)} shapes", fix="run one shape at a time")
    if recorded:
        from turbort.io import resolve_target

        resolve_target(recorded)
    if replayed is None:
        return None
    from turbort.guard.policy import Policy

    return Policy.load(replayed)


def write(session: Session, recorded: Path | None, *, quiet: bool) -> None:
    """Write what was promoted, where a file was asked for."""
    if recorded is None:
        return
    from turbort.io import atomic_text

    policy = session.policy()
    atomic_text(recorded, policy.dumps())
    if quiet:
        return
    count = len({name for steps in policy.roles.values() for names in steps for name in names})
    ui.say(f"policy with {count} promoted sites written to {recorded}")
