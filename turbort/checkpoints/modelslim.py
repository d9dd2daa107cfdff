"""msmodelslim (Ascend): a `quant_model_description*.json` beside the weights gives the type of every tensor.

W8A8_DYNAMIC   <linear>.weight int8 [out, in], <linear>.weight_scale [out, 1], <linear>.weight_offset [out, 1] (zero)
W8A8           the weight as above; activations were to have one fixed scale and offset, y = (x_q W_q^T + quant_bias) deq_scale:
               <linear>.deq_scale [out] (= input_scale * weight_scale; int64 holds the bits of a float32), .input_scale [1],
               .input_offset [1], .quant_bias int32 [out] (= bias / deq_scale - input_offset * sum_k W_q)
FLOAT          stored as it is

turbort scales activations per token, which no fixed scale improves on, so of W8A8 it keeps the codes bit for bit, the weight's
own scale, and the bias that quant_bias stands for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from turbort.checkpoints.dialect import Entry, Headers, Metadata, Storage, Value, plain_entry
from turbort.checkpoints.prefixes import strip_prefixes
from turbort.checkpoints.scaled import scale_problem, scaled_entry
from turbort.checkpoints.source import Source, refuse, unreadable
from turbort.quant.qtensor import QTensor

DESCRIPTION = "quant_model_description"
DYNAMIC, STATIC, PLAIN = "W8A8_DYNAMIC", "W8A8", "FLOAT"
SCALE, OFFSET = ".weight_scale", ".weight_offset"
DEQ, INPUT, INPUT_OFFSET, BIAS = ".deq_scale", ".input_scale", ".input_offset", ".quant_bias"

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


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
    return DESCRIPTION in metadata or any(name.endswith((OFFSET, DEQ)) for name in headers)


def _entries(source: Source) -> dict[str, Entry]:
    headers, types = source.headers, _types(source.metadata)
    read = (DYNAMIC, STATIC, PLAIN)
    unknown = [f"{name} is {types[name]}" for name in headers if types.get(name, PLAIN) not in read]
    refuse(source.path, f"types that turbort does not read (it reads {', '.join(read)})", unknown)
    undescribed = [name for name in headers if name not in types]
    refuse(source.path, f"tensors that {DESCRIPTION}.json does not describe", undescribed)
    kinds = {name.removesuffix(".weight"): types[name] for name in headers if name.endswith(".weight")}
    linears = [linear for linear, kind in kinds.items() if kind == DYNAMIC]
    fixed = [linear for linear, kind in kinds.items() if kind == STATIC]
    problems = [line for linear in linears if (line := _problem(headers, linear))]
    problems += [line for linear in fixed if (line := _static_problem(headers, linear))]
    refuse(source.path, "quantised linears that are not complete", problems)
    entries = {f"{linear}.weight": _entry(source, linear) for linear in linears}
    for linear in fixed:
        entries |= _static_entries(source, linear)
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


def _static_problem(headers: Headers, linear: str) -> str | None:
    weight = headers[f"{linear}.weight"]
    if weight.dtype is not torch.int8 or len(weight.shape) != 2:
        return f"{linear}.weight is {weight.dtype} {list(weight.shape)}, its type {STATIC} says an int8 matrix"
    rows = weight.shape[0]
    for leaf, count, dtypes in ((DEQ, rows, (torch.float32, torch.int64)), (INPUT, 1, FLOATS), (BIAS, rows, (torch.int32,)),
                                (INPUT_OFFSET, 1, (*FLOATS, torch.int8, torch.int32))):  # fmt: skip
        header = headers.get(linear + leaf)
        if header is None:
            return f"{linear}{leaf} is missing"
        if header.dtype not in dtypes or torch.Size(header.shape).numel() != count:
            return f"{linear}{leaf} is {header.dtype} {list(header.shape)}, not {count} of {' or '.join(map(str, dtypes))}"
    return None


def _static_entries(source: Source, linear: str) -> dict[str, Entry]:
    """Weight with its own scale, and the bias in floats: what the fixed scale and offset of the activations were folded into."""
    weight, rows = f"{linear}.weight", source.headers[f"{linear}.weight"].shape[0]
    sources = tuple(linear + leaf for leaf in (DEQ, INPUT, BIAS, INPUT_OFFSET))
    also = tuple(name for leaf in (SCALE, OFFSET) if (name := linear + leaf) in source.headers)
    dtype = torch.bfloat16

    def factors() -> tuple[Tensor, Tensor]:
        stored = source.load(linear + DEQ).reshape(-1)
        deq = stored.to(torch.int32).view(torch.float32) if stored.dtype is torch.int64 else stored
        width = source.load(linear + INPUT).to(torch.float32).reshape(-1)
        scale = deq / width
        if not bool(scale.isfinite().all()) or not bool((scale > 0).all()):
            raise unreadable(source.path, f"{linear}{DEQ} over {linear}{INPUT} are not all positive numbers")
        return deq, scale.view(rows, 1)

    def values() -> Value:
        if also and linear + OFFSET in source.headers and bool((source.load(linear + OFFSET) != 0).any()):
            raise unreadable(source.path, f"{linear}{OFFSET} is not zero; turbort reads symmetric weights")
        return QTensor("int8-channel", source.load(weight), factors()[1], dtype)

    def bias() -> Value:
        sums = source.load(weight).sum(dim=1, dtype=torch.int64) * source.load(linear + INPUT_OFFSET).to(torch.int64).reshape(-1)
        return ((source.load(linear + BIAS).to(torch.int64) + sums).to(torch.float32) * factors()[0]).to(dtype)

    entries = {weight: Entry(source.headers[weight].shape, dtype, values, (weight, *sources, *also), "int8-channel",
                             stored="int8-channel")}  # fmt: skip
    if f"{linear}.bias" not in source.headers:
        entries[f"{linear}.bias"] = Entry((rows,), dtype, bias, sources, stored="quant_bias")
    return entries


MODELSLIM = Storage("msmodelslim", _matches, _entries)
