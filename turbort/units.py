"""Byte counts as people write them (`40GiB`, `16 GB`) and bounds on them (`>=32GiB`). No dependencies."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNITS = {
    "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
LIMIT = 2**60
_EXACT = (
    ("TiB", 2**40), ("TB", 10**12), ("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20), ("MB", 10**6), ("KiB", 2**10), ("KB", 10**3),
    ("B", 1),
)  # fmt: skip
_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]{1,3})\s*\Z", re.ASCII)
_TERM = re.compile(r"\s*(>=|<=|>|<)?(.*)\Z", re.DOTALL)


def parse_bytes(text: str) -> int:
    """`"40GiB"` -> 42949672960. A unit is required; raises ValueError with the accepted units."""
    match = _SIZE.match(text)
    factor = UNITS.get(match.group(2).upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write a number with a unit, such as 40GiB or 500MB")
    count = round(float(match.group(1)) * factor)
    if count > LIMIT:
        raise ValueError(f"{text!r} is more than 1024 PiB")
    return count


def format_bytes(count: int | None) -> str:
    """The shortest exact-enough form with a binary unit: `42949672960` -> `"40GiB"`, `None` -> `"unknown"`."""
    if count is None:
        return "unknown"
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f}".removesuffix(".0") + unit
    return f"{count}B"


def exact_bytes(count: int) -> str:
    """The largest unit that expresses `count` as a whole number, so that `parse_bytes` gives it back."""
    return next(f"{count // factor}{unit}" for unit, factor in _EXACT if count % factor == 0)


@dataclass(frozen=True, slots=True)
class Bound:
    """A condition on a number of bytes: every term `(comparison, bytes)` must hold."""

    terms: tuple[tuple[str, int], ...]

    @staticmethod
    def parse(text: str) -> Bound:
        """`">=32GiB"` or `">=20GiB, <40GiB"`; a bare size means `>=`. Raises ValueError."""
        terms = []
        for part in text.split(","):
            match = _TERM.match(part)
            sign, size = match.groups() if match else (None, part)
            terms.append((sign or ">=", parse_bytes(size or "")))
        return Bound(tuple(terms))

    def allows(self, count: int) -> bool:
        """Whether `count` bytes satisfy every term."""
        holds = {">=": int.__ge__, "<=": int.__le__, ">": int.__gt__, "<": int.__lt__}
        return all(holds[sign](count, size) for sign, size in self.terms)

    def __str__(self) -> str:
        return ", ".join(f"{sign}{exact_bytes(size)}" for sign, size in self.terms)
