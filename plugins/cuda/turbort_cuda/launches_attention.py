"""Launches of attention, its preparation and SLA's block map: see `turbort_cuda.launches`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from turbort_cuda.configs import row
from turbort_cuda.kernels import attention, kv, sla, sums
from turbort_cuda.launch_row import INT, A, Launch


def attention_launches(capability: int, fp8: bool) -> Iterator[Launch]:
    """Dense and sparse attention of every precision, in Triton and, for Hopper, in Gluon, and what goes before them."""
    for mode in ("16-bit", "int8", "int8-fp8") if fp8 else ("16-bit", "int8"):
        yield _attention(f"attention-{mode}", capability, mode, sparse=False)
        yield _attention(f"sla-{mode}", capability, mode, sparse=True)
        if capability == 90 and mode != "16-bit":
            yield _gluon(f"attention-gluon-{mode}", capability, mode, sparse=False)
            yield _gluon(f"sla-gluon-{mode}", capability, mode, sparse=True)
            yield _gluon(f"sla-gluon-early-{mode}", capability, mode, sparse=True, early=True)
    yield from _prepare(capability, fp8)


def _attention(name: str, capability: int, mode: str, *, sparse: bool) -> Launch:
    c = dict(row("attention", capability, "sparse" if sparse else f"dense-{mode}"))
    if sparse:
        c |= {"BLOCK_M": 64, "BLOCK_N": 128}
    int8, fp8, n = mode != "16-bit", mode == "int8-fp8", c["BLOCK_N"]
    tma = bool(c.get("tma")) and int8
    arguments = {
        "q": "*bf16",
        "k": f"tensordesc<i8[{n}, 128]>" if tma else "*i8" if int8 else "*bf16",
        "v": (f"tensordesc<fp8e4nv[128, {n}]>" if tma else "*fp8e4nv") if fp8 else "*bf16",
        "out": "*bf16",
        "k_scales": "*fp32",
        "v_scales": "*fp32",
        "lut": "*i32",
        "state": "*bf16",
        "totals": "*fp32",
        "proj_bias": "*bf16",
        "LQ": INT,
        "LK": INT,
        "H": INT,
        "blocks": INT,
        "chosen": INT,
        "softmax_scale": "fp32",
        **{f"stride_{t}{axis}": A for t in "qkv" for axis in "blh"},
    }
    constants = {
        "BLOCK_M": c["BLOCK_M"],
        "BLOCK_N": n,
        "D": 128,
        "INT8": int8,
        "FP8": fp8,
        "TMA": tma,
        "SPARSE": sparse,
        "LINEAR": sparse,
        "STAGES": c["stages"],
        "AHEAD": bool(c.get("ahead")) and int8,
        "BIASED": bool(c.get("biased")) and int8,
    }
    return Launch(name, attention.attention_kernel, arguments, constants, c["warps"], c["stages"], "s8" if int8 else "bf16")


def _gluon(name: str, capability: int, mode: str, *, sparse: bool, early: bool = False) -> Launch:
    from turbort_cuda.kernels import attention_hopper

    plain = _attention(name, capability, mode, sparse=sparse)
    fp8 = mode == "int8-fp8"
    keys, values = attention_hopper.layouts(fp8)
    descriptors = {
        "k": f"tensordesc<i8[128, 128],{keys!r}>",
        "v": f"tensordesc<{'fp8e4nv' if fp8 else 'bf16'}[128, 128],{values!r}>",
    }
    if early:
        descriptors["state"] = f"tensordesc<bf16[128, 128],{attention_hopper.layouts(False)[1]!r}>"
    arguments = {key: kind for key, kind in plain.arguments.items() if not key.startswith(("stride_k", "stride_v"))}
    constants: dict[str, Any] = {"M": 64, "N": 128, "D": 128, "FP8": fp8, "SPARSE": sparse, "LINEAR": sparse}
    constants |= {"STAGES": 3 if fp8 else 2, "FLOOR": 1e-8, "EARLY": early, "BIASED": early}
    return Launch(name, attention_hopper.hopper_attention_kernel, arguments | descriptors, constants, 4, 2, "s8")


def _prepare(capability: int, fp8: bool) -> Iterator[Launch]:
    strides = {f"stride_{t}{axis}": A for t in "xv" for axis in "blh"}
    yield Launch(
        "kv-sums",
        sums.sums_kernel,
        {"x": "*bf16", "v": "*bf16", "sums": "*fp32", "tops": "*fp32", "L": INT, "H": INT, "blocks": INT, **strides},
        {"ROWS": 128, "D": 128, "SUMS": True, "TOPS": True},
        4,
        2,
    )
    strides = {f"stride_{t}{axis}": A for t in "kv" for axis in "blh"}
    given = {"k": "*bf16", "v": "*bf16", **dict.fromkeys(("L", "H"), INT), **strides}
    made = {**dict.fromkeys(("mean", "v_scale", "k_scales"), "*fp32"), "codes": "*i8", "v_codes": "*fp8e4nv" if fp8 else "*bf16"}
    c = row("prepare", capability, "wide")
    constants = {"ROWS": 128, "D": 128, "INT8": True, "FP8": fp8}
    yield Launch("kv-codes", kv.codes_kernel, {**given, **made, "blocks": INT}, constants, c["warps"], 3)
    made = {"state": "*fp32", "totals": "*fp32", "tiles": INT, "per_chunk": INT}
    constants = {"ROWS": c["tile"], "D": 128, "STAGES": c["state_stages"]}
    yield Launch("kv-state", kv.state_kernel, {**given, **made}, constants, c["state_warps"], c["state_stages"], "bf16")
    yield Launch(
        "kv-finish-sums",
        sums.finish_sums_kernel,
        {**dict.fromkeys(("sums", "tops", "mean", "v_scale", "pooled"), "*fp32"), **dict.fromkeys(("L", "H", "blocks"), INT)},
        {"ROWS": 128, "COUNT": 256, "D": 128, "WIDTH": 32, "MEAN": True, "TOPS": True, "POOL": True},
        8,
        3,
    )
    yield Launch(
        "kv-finish-state",
        kv.finish_state_kernel,
        {"partial": "*fp32", "partial_totals": "*fp32", "proj": "*bf16", "state": "*bf16", "totals": "*fp32", "chunks": INT},
        {"D": 128, "PART": 16, "PROJ": True},
        4,
        3,
    )
    yield Launch(
        "sla-choose",
        sla.choose_kernel,
        {"scores": "*fp32", "lut": "*i32", "BLOCKS": INT, "CHOSEN": INT},
        {"WIDTH": 256},
        1,
        3,
    )
