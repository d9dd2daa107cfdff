"""compressed-tensors and ModelOpt: a `quantization_config` (in `config.json`, `hf_quant_config.json` or the file's metadata).

    <linear>.weight         int8 or float8_e4m3fn [out, in]
    <linear>.weight_scale   float [], [1], [out] or [out, 1]
    <linear>.input_scale    one value; not used: turbort scales activations per token
    <linear>.weight_packed  int32 [out, in / 8], eight unsigned nibbles each, lowest first, value = nibble - 8
                            with weight_scale [out, in / 128] and weight_shape int64 [2]
Weights are symmetric; a stored zero point must be zero.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from turbort.checkpoints.dialect import Entry, Headers, Metadata, Storage, plain_entry, stands_for_dtype
from turbort.checkpoints.scaled import scale_problem, scaled_entry
from turbort.checkpoints.source import Source, refuse, unreadable
from turbort.quant.qtensor import QTensor

CONFIGS = ("quantization_config", "hf_quant_config")
METHODS = ("compressed-tensors", "modelopt", "modelopt_fp8", "modelopt_mixed")
SCALE, PACKED, SHAPE, ZERO = ".weight_scale", ".weight_packed", ".weight_shape", ".weight_zero_point"
UNUSED = (".input_scale", ".input_zero_point", ".output_scale", ".k_scale", ".v_scale", ".q_scale")
GROUP = 128


def _config(metadata: Metadata) -> dict[str, Any]:
    """The description, whichever of the two names it goes by; empty when there is none or it is no JSON object."""
    for name in CONFIGS:
        try:
            found = json.loads(metadata.get(name, "null"))
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def method(metadata: Metadata) -> str | None:
    """`compressed-tensors` or `modelopt`, as the description says; None without one."""
    config = _config(metadata)
    producer = config.get("producer")
    named = config.get("quant_method") or (producer.get("name") if isinstance(producer, dict) else None)
    return named if isinstance(named, str) else None


def _matches(headers: Headers, metadata: Metadata) -> bool:
    if any(name.endswith(PACKED) for name in headers):
        return True
    return method(metadata) in METHODS and any(name.endswith(SCALE) for name in headers)


def _entries(source: Source) -> dict[str, Entry]:
    headers = source.headers
    packed = [name.removesuffix(PACKED) for name in headers if name.endswith(PACKED)]
    scaled = [name.removesuffix(SCALE) for name in headers if name.endswith(SCALE)]
    scaled = [linear for linear in scaled if f"{linear}{PACKED}" not in headers]
    problems = [line for linear in packed if (line := _packed_problem(headers, linear))]
    problems += [line for linear in scaled if (line := scale_problem(headers, f"{linear}.weight", linear + SCALE))]
    refuse(source.path, "quantised linears that turbort cannot read", problems)
    entries = {f"{linear}.weight": _packed(source, linear) for linear in packed}
    for linear in scaled:
        entry = scaled_entry(source, f"{linear}.weight", linear + SCALE, f"{linear}.bias")
        entries[f"{linear}.weight"] = _symmetric(source, linear, entry)
    used = {name for entry in entries.values() for name in entry.sources}
    rest = (name for name in headers if name not in used and not name.endswith((*UNUSED, ZERO)))
    return entries | {name: plain_entry(source, name) for name in rest}


def _symmetric(source: Source, linear: str, entry: Entry) -> Entry:
    zero = linear + ZERO
    if zero not in source.headers:
        return entry

    def read() -> Any:
        if bool((source.load(zero) != 0).any()):
            raise unreadable(source.path, f"{zero} is not zero; turbort reads symmetric weights", fix="quantise symmetrically")
        return entry.read()

    return Entry(entry.shape, entry.dtype, read, (*entry.sources, zero), entry.scheme, stored=entry.stored)


def _packed_problem(headers: Headers, linear: str) -> str | None:
    codes, scale, shape = (headers.get(linear + part) for part in (PACKED, SCALE, SHAPE))
    if scale is None or shape is None:
        return f"{linear}{SCALE if scale is None else SHAPE} is missing"
    if codes is None or codes.dtype is not torch.int32 or len(codes.shape) != 2:
        return f"{linear}{PACKED} is not an int32 matrix"
    if f"{linear}{ZERO}" in headers:
        return f"{linear}{ZERO} is there; turbort reads symmetric int4"
    rows, groups = codes.shape[0], -(-codes.shape[1] * 8 // GROUP)
    if scale.shape != (rows, groups) or not scale.dtype.is_floating_point:
        return f"{linear}{SCALE} is {scale.dtype} {list(scale.shape)}, not float [{rows}, {groups}] (groups of {GROUP} inputs)"
    return None


def _packed(source: Source, linear: str) -> Entry:
    codes, scale, shape = (linear + part for part in (PACKED, SCALE, SHAPE))
    rows, words = source.headers[codes].shape
    size = [int(value) for value in source.load(shape).tolist()]
    if len(size) != 2 or size[0] != rows or -(-size[1] // 8) != words:
        raise unreadable(source.path, f"{shape} says {size}, {codes} holds [{rows}, {words * 8}]")
    dtype = stands_for_dtype(source.headers, f"{linear}.bias")

    def read() -> QTensor:
        scales = source.load(scale).to(torch.float32)
        if not bool(scales.isfinite().all()):
            raise unreadable(source.path, f"the scales {scale} are not all finite numbers")
        return QTensor("int4-group128", unpack_words(source.load(codes), size[1]), scales, dtype)

    return Entry((rows, size[1]), dtype, read, (codes, scale, shape), "int4-group128", stored="int4-group128")


def unpack_words(words: Tensor, length: int) -> Tensor:
    """int32 [N, W] -> int8 [N, length] in [-8, 7]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    nibbles = (words.unsqueeze(-1) >> shifts) & 0xF
    return (nibbles - 8).to(torch.int8).flatten(1)[:, :length].contiguous()


def pack_words(codes: Tensor) -> Tensor:
    """The inverse: int8 [N, K] in [-8, 7] -> int32 [N, ceil(K / 8)]."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % 8))
    # Assembled in 64 bits, because the eighth nibble reaches the sign bit of an int32.
    nibbles = (padded.to(torch.int64) + 8).view(codes.shape[0], -1, 8) << torch.arange(0, 32, 4, dtype=torch.int64)
    whole = nibbles.sum(dim=-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).to(torch.int32)


COMPRESSED = Storage("compressed-tensors", _matches, _entries)
