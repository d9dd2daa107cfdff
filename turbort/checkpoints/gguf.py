"""GGUF's storage: every tensor as the reader hands it over (`gguf_file`), quantised blocks already as floats."""

from __future__ import annotations

from turbort.checkpoints.dialect import Headers, Metadata, Storage
from turbort.checkpoints.gguf_file import ARCHITECTURE
from turbort.checkpoints.wan import plain_entries


def _matches(_: Headers, metadata: Metadata) -> bool:
    return ARCHITECTURE in metadata


GGUF = Storage("gguf", _matches, plain_entries)
