"""Names as in Wan's own files: those of turbort's models, so nothing is translated."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from turbort.checkpoints.dialect import Entry, Headers, Metadata, Naming, Storage, plain_entry
from turbort.checkpoints.source import Source


def _any(_: Collection[str]) -> bool:
    return True


def _anything(_: Headers, _metadata: Metadata) -> bool:
    return True


def _same(names: Collection[str]) -> Mapping[str, str]:
    return {name: name for name in names}


def plain_entries(source: Source) -> dict[str, Entry]:
    """Every tensor as it is stored."""
    return {name: plain_entry(source, name) for name in source.headers}


PLAIN = Storage("plain", _anything, plain_entries)
WAN = Naming("wan", _any, _same)
