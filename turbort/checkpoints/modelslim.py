"""msmodelslim (Ascend): a `quant_model_description*.json` beside the weights gives the type of every tensor.

W8A8_DYNAMIC   <linear>.weight int8 [out, in], <linear>.weight_scale [out, 1], <linear>.weight_offset [out, 1] (zero)
FLOAT          stored as it is
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from turbort.checkpoints.dialect import Entry, Headers, Metadata, Storage, Value, plain_entry
from turbort.checkpoints.prefixes import strip_prefixes
from turbort.checkpoints.scaled import scale_problem, scaled_entry
from turbort.checkpoints.source import Source, refuse, unreadable

DESCRIPTION = "quant_model_description"
DYNAMIC, PLAIN = "W8A8_DYNAMIC", "FLOAT"
SCALE, OFFSET = ".weight_scale", ".weight_offset"


def _types(metadata: Metadata) -> Mapping[str, str]:
    """Type by tensor name (without wrappers); entries that describe the whole model are not names of tensors and stay unused."""
    try:
        found = json.loads(metadata.get(DESCRIPTION, "{}"))
    except (ValueError, RecursionError):
        return {}
    rows = {str(name): kind for name, kind in found.items() if isinstance(kind, str)} if isinstance(found, dict) else {}
    clean = strip_prefixes(rows)
    return {clean[name]: kind for name, kind in rows.items()}


def _matches(headers: Headers, metadata: Metadata) -> bool:
    return DESCRIPTION in metadata or any(name.endswith(OFFSET) for name in headers)


def _entries(source: Source) -> dict[str, Entry]:
    headers, types = source.headers, _types(source.metadata)
    unknown = [f"{name} is {types[name]}" for name in headers if types.get(name, PLAIN) not in (DYNAMIC, PLAIN)]
    refuse(source.path, f"types that turbort does not read (it reads {DYNAMIC} and {PLAIN})", unknown)
    undescribed = [name for name in headers if name not in types]
    refuse(source.path, f"tensors that {DESCRIPTION}.json does not describe", undescribed)
    linears = [name.removesuffix(".weight") for name in headers if name.endswith(".weight") and types[name] == DYNAMIC]
    problems = [line for linear in linears if (line := _problem(headers, linear))]
    refuse(source.path, "quantised linears that are not complete", problems)
    entries = {f"{linear}.weight": _entry(source, linear) for linear in linears}
    used = {name for entry in entries.values() for name in entry.sources}
    return entries | {name: plain_entry(source, name) for name in headers if name not in used}


def _problem(headers: Headers, linear: str) -> str | None:
    weight = headers[f"{linear}.weight"]
    if weight.dtype is not torch.int8:
        return f"{linear}.weight is {weight.dtype}, its type {DYNAMIC} says int8"
    return scale_problem(headers, f"{linear}.weight", linear + SCALE)


def _entry(source: Source, linear: str) -> Entry:
    offset = linear + OFFSET
    also = (offset,) if offset in source.headers else ()
    entry = scaled_entry(source, f"{linear}.weight", linear + SCALE, f"{linear}.bias", also=also)
    if not also:
        return entry

    def read() -> Value:
        if bool((source.load(offset) != 0).any()):
            raise unreadable(source.path, f"{offset} is not zero; turbort reads symmetric weights", fix="quantise symmetrically")
        return entry.read()

    return Entry(entry.shape, entry.dtype, read, entry.sources, entry.scheme, stored=entry.stored)


MODELSLIM = Storage("msmodelslim", _matches, _entries)
