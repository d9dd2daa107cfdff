"""TurboDiffusion's `.pth` files: a flattened patch embedding, SLA's projection, and `-quant` files with 128x128 int8 blocks.

A quantised linear has no `.weight` but
    <linear>.int8_weight  int8  [out, in]
    <linear>.scale        fp32  [ceil(out / 128), ceil(in / 128)]
with W = int8_weight * scale per block. Both are kept bit for bit.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from turbort.checkpoints.dialect import Entry, Headers, Metadata, Storage, plain_entry, quantised_entry
from turbort.checkpoints.source import Source, refuse
from turbort.checkpoints.wan import plain_entries

BLOCK = 128
VALUES, SCALE = ".int8_weight", ".scale"
PATCH = "patch_embedding.weight"
PATCH_SIZE = (1, 2, 2)


def _is_quantised(headers: Headers, _: Metadata) -> bool:
    return any(name.endswith(VALUES) for name in headers)


def _is_plain(headers: Headers, _: Metadata) -> bool:
    flat = PATCH in headers and len(headers[PATCH].shape) == 2
    return flat or any(".attn_op.local_attn.proj_l." in name for name in headers)


def _entries(source: Source) -> dict[str, Entry]:
    headers = source.headers
    linears = [name.removesuffix(VALUES) for name in headers if name.endswith(VALUES)]
    problems = [problem for linear in linears if (problem := _problem(headers, linear))]
    refuse(source.path, "block-quantised linears that are not complete", problems)
    entries: dict[str, Entry] = {}
    used = set()
    for linear in linears:
        values, scales = linear + VALUES, linear + SCALE
        shape = headers[scales].shape
        entries[f"{linear}.weight"] = quantised_entry(source, "int8-block128", values, scales, shape, f"{linear}.bias")
        used |= {values, scales}
    entries.update((name, plain_entry(source, name)) for name in headers if name not in used)
    return entries


def _problem(headers: Headers, linear: str) -> str | None:
    values, scale = headers[linear + VALUES], headers.get(linear + SCALE)
    if len(values.shape) != 2 or values.dtype is not torch.int8:
        return f"{linear}{VALUES} is {values.dtype} {list(values.shape)}, not an int8 matrix"
    if f"{linear}.weight" in headers:
        return f"{linear} has both {VALUES} and .weight"
    if scale is None:
        return f"{linear}{SCALE} is missing"
    wanted = tuple(-(-size // BLOCK) for size in values.shape)
    if scale.shape != wanted or not scale.dtype.is_floating_point:
        return f"{linear}{SCALE} is {scale.dtype} {list(scale.shape)}, not float {list(wanted)}"
    return None


def unflatten_patch(entries: dict[str, Entry]) -> None:
    """Give a patch embedding stored as [D, C*1*2*2] its five axes [D, C, 1, 2, 2] back; others are left alone."""
    entry = entries.get(PATCH)
    if entry is None or entry.scheme is not None or len(entry.shape) != 2 or entry.shape[1] % 4:
        return
    shape = (entry.shape[0], entry.shape[1] // 4, *PATCH_SIZE)

    def read() -> torch.Tensor:
        flat = entry.read()
        assert isinstance(flat, torch.Tensor)  # scheme is None
        return flat.reshape(shape)

    entries[PATCH] = replace(entry, shape=shape, read=read)


QUANTISED = Storage("turbodiffusion-quant", _is_quantised, _entries)
UNQUANTISED = Storage("turbodiffusion", _is_plain, plain_entries)
