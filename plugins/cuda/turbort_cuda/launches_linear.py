"""Launches of the Hopper linear in Gluon: see `turbort_cuda.launches`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from turbort_cuda.launch_row import INT, A, Launch

PLAIN = {"HAS_BIAS": True, "GELU": False, "RESIDUAL": False, "GATE": 0}
CONFIG = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "GROUP": 8, "stages": 4, "lead": 2}


def hopper_linear_launches(end: Mapping[str, Any], gelu: Mapping[str, Any], gated: Mapping[str, Any]) -> Iterator[Launch]:
    """int8 with each end of a tile, e4m3 with the longest, and the tile that is higher than wide."""
    yield _launch("linear-gluon-int8", CONFIG, PLAIN)
    yield _launch("linear-gluon-int8-gelu", CONFIG, gelu)
    yield _launch("linear-gluon-int8-residual", CONFIG, end)
    yield _launch("linear-gluon-int8-rows-gate", CONFIG, gated)
    yield _launch("linear-gluon-int8-high", {**CONFIG, "BLOCK_M": 256, "BLOCK_N": 128}, end)
    yield _launch("linear-gluon-int8-short", {**CONFIG, "BLOCK_K": 64}, PLAIN)
    yield _launch("linear-gluon-fp8", CONFIG, end, "fp8e4nv")


def _launch(name: str, config: Mapping[str, Any], flags: Mapping[str, Any], kind: str = "i8") -> Launch:
    from turbort_cuda.kernels import linear_hopper as kernel

    s = kernel.shape_of(config, int8=kind == "i8", residual=flags["RESIDUAL"])
    operands, results = kernel.layouts(s.depth)
    part = f"tensordesc<bf16[{s.rows}, {kernel.PART}],{results!r}>"
    arguments = {
        "x": f"tensordesc<{kind}[{s.rows}, {s.depth}],{operands!r}>",
        "w": f"tensordesc<{kind}[{s.cols}, {s.depth}],{operands!r}>",
        "out": part,
        "residual": part,
        "x_scale": "*fp32",
        "w_scale": "*fp32",
        "bias": "*bf16",
        "gate": "*fp32",
        "length": INT,
        "stride_gb": A,
        "stride_gl": A,
        "M": INT,
        "N": A,
        "K": A,
    }
    constants = {"ROWS": s.rows, "COLS": s.cols, "DEPTH": s.depth, "GROUP": config["GROUP"], "STAGES": s.stages, "LEAD": s.lead}
    constants |= {"WIDE": s.wide, "WIDTH": kernel.PART, "BUFFERS": s.buffers, "INT": kind == "i8", **flags}
    product = "s8" if kind == "i8" else "e4m3"
    return Launch(name, kernel.hopper_linear_kernel, arguments, constants, 4, 1, product, kernel.REGISTERS)
