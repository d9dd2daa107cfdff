"""One representative launch per kernel and architecture, as data: the types and constants that a launch there specialises to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import triton.language as tl

from turbort_cuda.configs import row
from turbort_cuda.kernels import linear8, linear_block128, linear_bsq, linear_int4, norm, patch, quant, rope
from turbort_cuda.launch_row import INT, A, Launch
from turbort_cuda.launches_attention import attention_launches
from turbort_cuda.launches_linear import hopper_linear_launches
from turbort_cuda.launches_vae import vae_launches

BIAS = {"bias": "*bf16", "residual": "*bf16", "gate": "*fp32", "length": INT, "stride_r": A, "stride_gb": A, "stride_gl": A}
SIZES = {"M": INT, "N": A, "K": A, "stride_x": A}
FLAGS = {"HAS_BIAS": True, "GELU": False, "RESIDUAL": True, "GATE": 1}
GELU = {"HAS_BIAS": True, "GELU": True, "RESIDUAL": False, "GATE": 0}


def launches(capability: int) -> Iterator[Launch]:
    """Every kernel at W's widths with the shipped configuration of this architecture."""
    fp8 = capability >= 89
    yield _linear8("linear-int8", capability, "i8", GELU)
    yield _linear8("linear-int8-residual", capability, "i8", FLAGS)
    if fp8:
        yield _linear8("linear-fp8", capability, "fp8e4nv", FLAGS)
    if capability == 90:
        yield from hopper_linear_launches(FLAGS, GELU, {**FLAGS, "GATE": 2})
    yield _block128(capability)
    yield _int4("linear-w4a8", capability, True)
    yield _int4("linear-w4a16", capability, False)
    yield _bsq(capability)
    yield from attention_launches(capability, fp8)
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
        "FLATTEN": bool(c.get("flatten")) and (not flags["RESIDUAL"] or c["stages"] <= 3),
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
    pointers = {"x": "*bf16", "weight": "*fp32", "cos": "*fp32", "sin": "*fp32", "out": "*bf16", "sums": "*fp32"}
    strides = dict.fromkeys(("stride_x", "stride_cb", "stride_cl", "stride_sb", "stride_sl"), A)
    for width in (1536, 5120):
        pairs = 1024 if width == 1536 else 4096
        for name, sums in (("rope", False), ("rope-sums", True)):
            tile, warps = rope.tile_of(width, sums)
            constants = {"HALF": 64, "PAIRS": pairs, "ROWS": tile, "PARTS": 64 // tile if sums else 1, "SUMS": sums}
            arguments = {**pointers, "D": A, "length": INT, "eps": "fp32", **strides}
            yield Launch(f"{name}-{width}", rope.rope_kernel, arguments, constants, warps, 3)
    yield Launch(
        "patchify",
        patch.patchify_kernel,
        {"x": "*bf16", "out": "*bf16", **dict.fromkeys(("C", "L", "t", "h", "w"), INT), **{f"stride_{a}": A for a in "bcthw"}},
        {"PT": 1, "PH": 2, "PW": 2, "WIDTH": 64, "ROWS": 32},
        4,
        3,
    )
