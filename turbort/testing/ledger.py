"""The ledger of a backend: every waived case, each with a reason, and proof that each waiver is still needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal

from turbort.errors import TurbortError

Kind = Literal["unsupported", "known_issues", "quarantine"]

_ISSUE = re.compile(r"#\d+|/issues/\d+|/pull/\d+")
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Waiver:
    """One ledger line: which cases, of what kind, and why."""

    kind: Kind
    pattern: str
    reason: str


class LedgerError(TurbortError):
    """A ledger line that says too little."""


@dataclass(frozen=True)
class Ledger:
    """Waived cases by case-id glob.

    `unsupported` is permanent and not run. `known_issues` run and must fail; one that passes is reported as
    fixed, which fails the suite until the line is removed. `quarantine` would take down the process or the
    device and is never run. Every line has a reason; known issues and quarantine name an issue (`#31` or its
    address). A line that matches no case is an error, so the lists cannot rot.
    """

    waivers: tuple[Waiver, ...] = ()

    @staticmethod
    def of(
        unsupported: Mapping[str, str] = _NOTHING,
        known_issues: Mapping[str, str] = _NOTHING,
        quarantine: Mapping[str, str] = _NOTHING,
    ) -> Ledger:
        """Check and collect the three lists; raises LedgerError for a line without reason or issue."""
        # Strongest first: what must never run wins over what is expected to fail.
        lists: tuple[tuple[Kind, Mapping[str, str]], ...] = (
            ("quarantine", quarantine),
            ("unsupported", unsupported),
            ("known_issues", known_issues),
        )
        found = []
        for kind, lines in lists:
            for pattern, reason in lines.items():
                if not reason.strip():
                    raise LedgerError(f"{kind} {pattern!r} gives no reason", fix="say why in one sentence")
                if kind != "unsupported" and not _ISSUE.search(reason):
                    raise LedgerError(
                        f"{kind} {pattern!r} names no issue: {reason!r}",
                        fix="add a reference such as #31, or move the line to `unsupported` if it is permanent",
                    )
                found.append(Waiver(kind, pattern, reason))
        return Ledger(tuple(found))

    def find(self, case_id: str) -> Waiver | None:
        """The strongest waiver whose glob matches (`*` also matches `/`)."""
        return next((waiver for waiver in self.waivers if fnmatchcase(case_id, waiver.pattern)), None)

    def unmatched(self, case_ids: Iterable[str]) -> list[Waiver]:
        """Waivers that match none of `case_ids`, the complete list of cases."""
        ids = list(case_ids)
        return [w for w in self.waivers if not any(fnmatchcase(one, w.pattern) for one in ids)]
