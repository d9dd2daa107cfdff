"""One representative launch per kernel and architecture, as data: the types and constants that a launch there specialises to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import triton.language as tl

from turbort_cuda.configs import row
from turbort_cuda.kernels import (
    attention,
    kv,
    linear8,
    linear_block128,
    linear_bsq,
    linear_int4,
    norm,
    patch,
    quant,
    rope,
    sla,
)
from turbort_cuda.launch_row import INT, A, Launch
from turbort_cuda.launches_vae import vae_launches

BIAS = {"bias": "*bf16", "residual": "*bf16", "gate": "*fp32", "length": INT, "stride_r": A, "stride_gb": A, "stride_gl": A}
SIZES = {"M": INT, "N": A, "K": A, "stride_x": A}
FLAGS = {"HAS_BIAS": True, "GELU": False, "RESIDUAL": True, "GATE": 1}
GELU = {"HAS_BIAS": True, "GELU": True, "RESIDUAL": False, "GATE": 0}


def launches(capability: int) -> Iterator[Launch]:
    """Every kernel at W's widths with the shipped configuration of this architecture."""
    fp8 = capability >= 89
    yield _linear8("linear-int8", capability, "i8", GELU)
    yield _linear8("linear-int8-expand", capability, "i8", GELU, "wide-expand")
    yield _linear8("linear-int8-residual", capability, "i8", FLAGS)
    if fp8:
        yield _linear8("linear-fp8", capability, "fp8e4nv", FLAGS)
    yield _block128(capability)
    yield _int4("linear-w4a8", capability, True)
    yield _int4("linear-w4a16", capability, False)
    yield _bsq(capability)
    for mode in ("16-bit", "int8", "int8-fp8") if fp8 else ("16-bit", "int8"):
        yield _attention(f"attention-{mode}", capability, mode, sparse=False)
        yield _attention(f"sla-{mode}", capability, mode, sparse=True)
        if capability == 90 and mode != "16-bit":
            yield _gluon(f"attention-gluon-{mode}", capability, mode, sparse=False)
            yield _gluon(f"sla-gluon-{mode}", capability, mode, sparse=True)
    yield from _prepare(capability, fp8)
    yield from _passes(fp8)
    yield from vae_launches(capability)


def _linear8(name: str, capability: int, kind: str, flags: Mapping[str, Any], shape: str = "wide") -> Launch:
    c = row("linear8", capability, shape)
    m, n, k, tma = c["BLOCK_M"], c["BLOCK_N"], c["BLOCK_K"], bool(c.get("tma"))
    arguments = {**_operands(kind, m, n, k, tma, n // 2 if c.get("halves") else n), "x_scale": "*fp32", "w_scale": "*fp32"}
    arguments |= {**BIAS, **SIZES, "stride_w": A}
    constants = {
        "BLOCK_M": m,
        "BLOCK_N": n,
        "BLOCK_K": k,
        "GROUP": c["GROUP"],
        "STAGES": c["stages"],
        "TMA": tma,
        "EVEN_K": True,
        "HALVES": bool(c.get("halves")),
        "INT": kind == "i8",
        "FLATTEN": bool(c.get("flatten")) and not flags["RESIDUAL"],
        "SPECIALIZE": bool(c.get("specialize")),
        **flags,
    }
    return Launch(name, linear8.linear8_kernel, arguments, constants, c["warps"], c["stages"], "s8" if kind == "i8" else "e4m3")


def _operands(kind: str, m: int, n: int, k: int, tma: bool, part: int) -> dict[str, str]:
    if tma:
        return {
            "x": f"tensordesc<{kind}[{m}, {k}]>",
            "w": f"tensordesc<{kind}[{n}, {k}]>",
            "out": f"tensordesc<bf16[{m}, {part}]>",
        }
    return {"x": f"*{kind}", "w": f"*{kind}", "out": "*bf16"}


def _block128(capability: int) -> Launch:
    c = row("linear_block128", capability, "wide")
    m, n, k, tma = c["BLOCK_M"], c["BLOCK_N"], c["BLOCK_K"], bool(c.get("tma"))
    arguments = {**_operands("i8", m, n, k, tma, n), "x_scale": "*fp32", "w_scale": "*fp32", **BIAS, **SIZES, "stride_w": A}
    constants = {
        "BLOCK_M": m,
        "BLOCK_N": n,
        "BLOCK_K": k,
        "GROUP": c["GROUP"],
        "STAGES": c["stages"],
        "TMA": tma,
        "EVEN_K": True,
        "KIND": tl.bfloat16,
        **FLAGS,
    }
    return Launch("linear-block128", linear_block128.block128_kernel, arguments, constants, c["warps"], c["stages"], "s8")


def _int4(name: str, capability: int, int8: bool) -> Launch:
    c = row("linear_int4", capability, "wide")
    arguments = {"x": "*i8" if int8 else "*bf16", "w": "*u8", "out": "*bf16", "x_scale": "*fp32", "w_scale": "*fp32"}
    constants = {
        "BLOCK_M": c["BLOCK_M"],
        "BLOCK_N": c["BLOCK_N"],
        "TILES": c["GROUP"],
        "STAGES": c["stages"],
        "INT": int8,
        **FLAGS,
    }
    arguments |= {**BIAS, **SIZES, "groups": INT}
    return Launch(name, linear_int4.int4_kernel, arguments, constants, c["warps"], c["stages"], "s8" if int8 else "bf16")


def _bsq(capability: int) -> Launch:
    c = row("linear_bsq", capability, "wide")
    arguments = {
        "x": "*i8",
        "w": "*i8",
        "out": "*bf16",
        "x_scale": "*fp32",
        "w_scale": "*fp32",
        "starts": "*i32",
        "columns": "*i32",
    }
    constants = {"BLOCK_M": c["BLOCK_M"], "EDGE": 64, "TILE": 8, "STAGES": c["stages"], **FLAGS}
    return Launch(
        "linear-bsq8", linear_bsq.bsq_kernel, {**arguments, **BIAS, **SIZES}, constants, c["warps"], c["stages"], "bf16"
    )


def _attention(name: str, capability: int, mode: str, *, sparse: bool) -> Launch:
    c = dict(row("attention", capability, "sparse" if sparse else "dense"))
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
        "proj": "*bf16",
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
    }
    return Launch(name, attention.attention_kernel, arguments, constants, c["warps"], c["stages"], "s8" if int8 else "bf16")


def _gluon(name: str, capability: int, mode: str, *, sparse: bool) -> Launch:
    from turbort_cuda.kernels import attention_hopper

    plain = _attention(name, capability, mode, sparse=sparse)
    fp8 = mode == "int8-fp8"
    keys, values = attention_hopper.layouts(fp8)
    descriptors = {
        "k": f"tensordesc<i8[128, 128],{keys!r}>",
        "v": f"tensordesc<{'fp8e4nv' if fp8 else 'bf16'}[128, 128],{values!r}>",
    }
    arguments = {key: kind for key, kind in plain.arguments.items() if not key.startswith(("stride_k", "stride_v"))}
    constants = {"M": 64, "N": 128, "D": 128, "FP8": fp8, "SPARSE": sparse, "LINEAR": sparse}
    constants |= {"STAGES": 3 if fp8 else 2, "FLOOR": 1e-8}
    return Launch(name, attention_hopper.hopper_attention_kernel, arguments | descriptors, constants, 4, 2, "s8")


def _prepare(capability: int, fp8: bool) -> Iterator[Launch]:
    strides = {f"stride_{t}{axis}": A for t in "xv" for axis in "blh"}
    yield Launch(
        "kv-sums",
        kv.sums_kernel,
        {"x": "*bf16", "v": "*bf16", "sums": "*fp32", "tops": "*fp32", "L": INT, "H": INT, "blocks": INT, **strides},
        {"ROWS": 128, "D": 128, "TOPS": True, "MEANS": False},
        4,
        2,
    )
    strides = {f"stride_{t}{axis}": A for t in "kv" for axis in "blh"}
    arguments = {
        "k": "*bf16",
        "v": "*bf16",
        "mean": "*fp32",
        "v_scale": "*fp32",
        "codes": "*i8",
        "k_scales": "*fp32",
        "v_codes": "*fp8e4nv" if fp8 else "*bf16",
        "state": "*fp32",
        "totals": "*fp32",
        "L": INT,
        "H": INT,
        "blocks": INT,
        "per_chunk": INT,
        **strides,
    }
    yield Launch(
        "kv-finish-sums",
        kv.finish_sums_kernel,
        {**dict.fromkeys(("sums", "tops", "mean", "v_scale", "pooled"), "*fp32"), **dict.fromkeys(("L", "H", "blocks"), INT)},
        {"ROWS": 128, "COUNT": 256, "D": 128, "WIDTH": 32, "MEAN": True, "TOPS": True, "POOL": True},
        8,
        3,
    )
    yield Launch(
        "kv-finish-state",
        kv.finish_state_kernel,
        {"partial": "*fp32", "partial_totals": "*fp32", "state": "*bf16", "totals": "*fp32", "chunks": INT},
        {"D": 128, "PART": 1024},
        4,
        3,
    )
    c = row("prepare", capability, "wide")
    constants = {"ROWS": 128, "D": 128, "INT8": True, "FP8": fp8, "LINEAR": True}
    yield Launch("kv-prepare", kv.prepare_kernel, arguments, constants, c["warps"], c["stages"], "bf16")
    yield Launch(
        "sla-choose",
        sla.choose_kernel,
        {"scores": "*fp32", "lut": "*i32", "BLOCKS": INT, "CHOSEN": INT},
        {"WIDTH": 256},
        1,
        3,
    )


def _passes(fp8: bool) -> Iterator[Launch]:
    gates = {f"stride_{t}{axis}": A for t in "gsh" for axis in "bl"}
    for emit in ("int8", "fp8", "none") if fp8 else ("int8", "none"):
        kind = {"int8": "*i8", "fp8": "*fp8e4nv", "none": "*bf16"}[emit]
        arguments = {
            "x": "*bf16",
            "y": "*bf16",
            "gate": "*fp32",
            "scale": "*fp32",
            "shift": "*fp32",
            "new": "*bf16",
            "out": kind,
            "scales": "*fp32",
            "D": A,
            "length": INT,
            "eps": "fp32",
            "stride_x": A,
            "stride_y": A,
            **gates,
        }
        part = {"WIDE": 1024, "REST": 512, "QUANT": emit != "none", "FP8": emit == "fp8"}
        constants = {**part, "KIND": 0, "GATED": emit != "none"}
        yield Launch(f"norm-{emit}", norm.norm_kernel, arguments, constants, quant.warps_for(1024), 3)
        arguments = {"x": "*bf16", "out": kind, "scales": "*fp32", "D": A, "stride": A}
        constants = {**part, "WIDE": 8192, "REST": 1024, "GELU": True}
        yield Launch(f"gelu-{emit}", quant.rows_kernel, arguments, constants, quant.warps_for(8192), 3)
    for emit in ("int8", "fp8") if fp8 else ("int8",):
        yield Launch(
            f"quantize-time-{emit}",
            quant.places_kernel,
            {
                "x": "*bf16",
                "out": "*i8" if emit == "int8" else "*fp8e4nv",
                "scales": "*fp32",
                "D": A,
                "frames": INT,
                "places": INT,
                "stride": A,
            },
            {"WIDE": 1024, "REST": 512, "FP8": emit == "fp8"},
            quant.warps_for(1024),
            3,
        )
    yield Launch(
        "quantize-blocks",
        quant.blocks_kernel,
        {"x": "*bf16", "out": "*i8", "scales": "*fp32", "M": INT, "D": A, "stride": A, "tiles": INT},
        {"EDGE": 128, "GELU": False},
        8,
        3,
    )
    yield Launch(
        "rope",
        rope.rope_kernel,
        {
            "x": "*bf16",
            "weight": "*fp32",
            "cos": "*fp32",
            "sin": "*fp32",
            "out": "*bf16",
            "D": A,
            "length": INT,
            "eps": "fp32",
            "stride_x": A,
            "stride_cb": A,
            "stride_cl": A,
            "stride_sb": A,
            "stride_sl": A,
        },
        {"HALF": 64, "PAIRS": 1024},
        quant.warps_for(2048),
        3,
    )
    yield Launch(
        "patchify",
        patch.patchify_kernel,
        {"x": "*bf16", "out": "*bf16", **dict.fromkeys(("C", "L", "t", "h", "w"), INT), **{f"stride_{a}": A for a in "bcthw"}},
        {"PT": 1, "PH": 2, "PW": 2, "WIDTH": 64, "ROWS": 32},
        4,
        3,
    )
