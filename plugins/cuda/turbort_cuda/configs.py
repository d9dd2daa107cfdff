"""Launch configurations as data: per kernel, architecture and shape class. No torch, no triton here.

`pick` answers at once, so that a first run never stalls to measure. A file that `python -m benchmarks.cuda` wrote on this card
(`TURBORT_CUDA_TUNING`, default `~/.cache/turbort/cuda-<arch>.json`) replaces rows of this table; see `turbort_cuda.tuning`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

WIDE_ROWS = 1024
TINY_ROWS = 64


def shape_class(rows: int) -> str:
    """`wide` (video tokens), `mid` (text, a small video) or `tiny` (time embeddings), by rows of the activation."""
    if rows > WIDE_ROWS:
        return "wide"
    return "mid" if rows > TINY_ROWS else "tiny"


def _c(m: int, n: int, k: int, stages: int, warps: int, **more: Any) -> Config:
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8, "stages": stages, "warps": warps, **more}


# 8-bit operands. Hopper: two consumer warpgroups on a 128 x 256 tile leave 128 accumulator registers a thread.
_LINEAR8: Mapping[int, Mapping[str, Config]] = {
    0: {"wide": _c(64, 64, 128, 1, 4), "mid": _c(64, 64, 128, 1, 4), "tiny": _c(16, 64, 128, 1, 4)},
    80: {"wide": _c(128, 256, 64, 4, 8, halves=True), "mid": _c(64, 128, 64, 4, 4), "tiny": _c(16, 64, 128, 4, 4)},
    86: {"wide": _c(128, 128, 64, 3, 8), "mid": _c(64, 128, 64, 3, 4), "tiny": _c(16, 64, 128, 4, 4)},
    89: {"wide": _c(128, 128, 64, 4, 8), "mid": _c(64, 128, 64, 4, 4), "tiny": _c(16, 64, 128, 4, 4)},
    90: {
        # In Gluon; what that kernel does not take runs in Triton, with the same tile.
        "wide": _c(128, 256, 128, 4, 8, tma=True, halves=True, flatten=True, gluon=True, lead=2),
        "mid": _c(64, 128, 128, 4, 4, tma=True),
        "tiny": _c(64, 64, 128, 4, 4, tma=True),
    },
    100: {
        "wide": _c(128, 256, 128, 4, 8, tma=True, halves=True),
        "mid": _c(128, 128, 128, 3, 4, tma=True),
        "tiny": _c(64, 64, 128, 4, 4, tma=True),
    },
    120: {"wide": _c(128, 128, 64, 3, 8, tma=True), "mid": _c(64, 128, 64, 3, 4, tma=True), "tiny": _c(16, 64, 128, 3, 4)},
}

# One int32 product per 128 inputs, then a float32 sum: two accumulators live at once, so tiles are smaller.
_BLOCK128: Mapping[int, Mapping[str, Config]] = {
    0: {"wide": _c(64, 128, 128, 1, 4)},
    80: {"wide": _c(128, 128, 128, 3, 8), "mid": _c(64, 128, 128, 3, 4)},
    86: {"wide": _c(128, 128, 128, 2, 8), "mid": _c(64, 128, 128, 3, 4)},
    89: {"wide": _c(128, 128, 128, 2, 8), "mid": _c(64, 128, 128, 3, 4)},
    90: {"wide": _c(128, 128, 128, 4, 8, tma=True), "mid": _c(64, 128, 128, 4, 4, tma=True)},
    100: {"wide": _c(128, 128, 128, 4, 8, tma=True), "mid": _c(64, 128, 128, 4, 4, tma=True)},
    120: {"wide": _c(128, 128, 128, 2, 8, tma=True), "mid": _c(64, 128, 128, 3, 4, tma=True)},
}

# Weights are unpacked in registers; K advances by one group of 128 inputs.
_INT4: Mapping[int, Mapping[str, Config]] = {
    0: {"wide": _c(64, 64, 128, 1, 4), "tiny": _c(16, 64, 128, 1, 4)},
    80: {"wide": _c(128, 128, 128, 2, 8), "tiny": _c(16, 64, 128, 3, 4)},
    86: {"wide": _c(64, 128, 128, 2, 8), "tiny": _c(16, 64, 128, 2, 4)},
    89: {"wide": _c(64, 128, 128, 2, 8), "tiny": _c(16, 64, 128, 2, 4)},
    90: {"wide": _c(128, 128, 128, 3, 8), "tiny": _c(16, 64, 128, 3, 4)},
    100: {"wide": _c(128, 128, 128, 3, 8), "tiny": _c(16, 64, 128, 3, 4)},
    120: {"wide": _c(64, 128, 128, 2, 8), "tiny": _c(16, 64, 128, 2, 4)},
}

_BSQ: Mapping[int, Mapping[str, Config]] = {
    0: {"wide": {"BLOCK_M": 64, "stages": 1, "warps": 4}},
    80: {"wide": {"BLOCK_M": 128, "stages": 3, "warps": 4}},
    86: {"wide": {"BLOCK_M": 64, "stages": 2, "warps": 4}},
    90: {"wide": {"BLOCK_M": 128, "stages": 3, "warps": 4}},
    120: {"wide": {"BLOCK_M": 64, "stages": 2, "warps": 4}},
}


def _a(m: int, n: int, stages: int, warps: int, **more: Any) -> Config:
    return {"BLOCK_M": m, "BLOCK_N": n, "stages": stages, "warps": warps, **more}


# `dense` chooses its own tiles; the tiles of `sparse` are the geometry of the block map, which the caller fixes.
_ATTENTION: Mapping[int, Mapping[str, Config]] = {
    0: {"dense": _a(64, 64, 1, 4), "sparse": _a(0, 0, 1, 4)},
    80: {"dense": _a(128, 64, 3, 8), "sparse": _a(0, 0, 3, 4)},
    86: {"dense": _a(128, 64, 2, 8), "sparse": _a(0, 0, 2, 4)},
    89: {"dense": _a(128, 64, 2, 8), "sparse": _a(0, 0, 2, 4)},
    90: {
        # Two programs of one warpgroup each on a multiprocessor: one's products run during the other's softmax.
        "dense-int8-fp8": _a(64, 128, 3, 4, tma=True),  # 828 TFLOP/s without its preparation; in Gluon 733, two stages 793
        "dense-int8": _a(64, 128, 2, 4, tma=True, gluon=True),
        "dense": _a(128, 128, 3, 8, tma=True),
        "sparse": _a(0, 0, 2, 4, tma=True),
        "sparse-64x128": _a(0, 0, 3, 4, tma=True, gluon=True, early=True),
        "sparse-128x128": _a(0, 0, 2, 8, tma=True),
        "sparse-128x64": _a(0, 0, 2, 8, tma=True),
    },
    100: {"dense": _a(128, 128, 2, 8, tma=True), "sparse": _a(0, 0, 2, 4, tma=True)},
    120: {"dense": _a(128, 64, 2, 8, tma=True), "sparse": _a(0, 0, 2, 4)},
}


def _p(warps: int, tile: int, state_warps: int, stages: int, per_sm: int, **more: Any) -> Config:
    return {"warps": warps, "tile": tile, "state_warps": state_warps, "state_stages": stages, "per_sm": per_sm, **more}


# Codes by block of keys; the linear state by tile, two of them (k and v) and their features in shared memory.
_PREPARE: Mapping[int, Mapping[str, Config]] = {
    0: {"wide": _p(4, 64, 4, 1, 1)},
    80: {"wide": _p(8, 64, 8, 2, 2)},
    86: {"wide": _p(8, 64, 8, 1, 1)},
    90: {"wide": _p(4, 32, 8, 3, 2, maxnreg=128)},
    120: {"wide": _p(8, 64, 8, 1, 1)},
}


def conv_class(outputs: int) -> str:
    """Classes of convolutions by their outputs: `narrow` (an image's 3 or 4), `o96`, `o192`, `wide`."""
    if outputs <= 4:
        return "narrow"
    if outputs <= 64:
        return "wide"
    return "o96" if outputs <= 96 else "o192" if 128 < outputs <= 192 else "wide"


def _v(bh: int, bw: int, k: int, n1: int, n2: int, stages: int, warps: int, **more: Any) -> Config:
    return {"BH": bh, "BW": bw, "K": k, "N1": n1, "N2": n2, "stages": stages, "warps": warps, **more}


# Pixels of a tile (BH x BW), inputs of a step, outputs of a tile (N1 + N2); `group`, `swap`, `tail`: see `kernels.conv3d`.
_CONV3D: Mapping[int, Mapping[str, Config]] = {
    0: {"o96": _v(8, 8, 64, 64, 32, 1, 4), "wide": _v(8, 8, 64, 128, 0, 1, 4)},
    80: {
        "narrow": _v(8, 16, 64, 16, 0, 3, 4),
        "o96": _v(8, 16, 64, 64, 32, 3, 4),
        "o192": _v(8, 16, 32, 128, 64, 3, 8),
        "wide": _v(8, 16, 64, 128, 0, 3, 8),
    },
    86: {
        "narrow": _v(8, 16, 32, 16, 0, 3, 4),
        "o96": _v(8, 16, 32, 64, 32, 3, 4),
        "o192": _v(8, 16, 32, 128, 64, 3, 8),
        "wide": _v(8, 16, 32, 128, 0, 3, 8),
    },
    90: {
        "narrow": _v(16, 16, 32, 16, 0, 6, 4, tma=True, group=4),
        "o96": _v(16, 16, 32, 128, 64, 5, 8, tma=True, swap=True, group=2),
        "o192": _v(16, 16, 64, 128, 64, 3, 8, tma=True, swap=True),
        "wide": _v(16, 16, 64, 128, 0, 4, 8, tma=True, swap=True),
    },
    120: {
        "narrow": _v(8, 16, 32, 16, 0, 3, 4, tma=True),
        "o96": _v(8, 16, 32, 64, 32, 3, 4, tma=True),
        "o192": _v(8, 16, 32, 128, 64, 3, 8, tma=True),
        "wide": _v(8, 16, 32, 128, 0, 3, 8, tma=True),
    },
}

CONV3D_FROM: Mapping[str, Mapping[str, int]] = {
    "sm_90": {"narrow": 1 << 12, "o96": 1 << 12, "o192": 1 << 12, "wide": 1 << 12},
}
"""Where plans take the Triton convolution before cuDNN's: per architecture and class of outputs, from how many pixels a frame.

Measured on an H100 for Hopper: 96 -> 96 507 against 217 TFLOP/s, 192 774 against 486, 384 728 against 533, 96 -> 3 42 against 20.
"""


def conv3d_from(arch: str, outputs: int) -> int | None:
    """Pixels from which plans take the Triton convolution on an architecture such as `sm_90`; None: never."""
    return CONV3D_FROM.get(arch, {}).get(conv_class(outputs))


TABLES: Mapping[str, Mapping[int, Mapping[str, Config]]] = {
    "linear8": _LINEAR8,
    "linear_block128": _BLOCK128,
    "linear_int4": _INT4,
    "linear_bsq": _BSQ,
    "attention": _ATTENTION,
    "prepare": _PREPARE,
    "conv3d": _CONV3D,
}


def row(kernel: str, capability: int, shape: str) -> Config:
    """The shipped configuration: the nearest older generation in the table, the nearest larger shape class.

    A shape such as `dense-int8` falls back to `dense`.
    `capability` 0 is Triton's interpreter.
    """
    table = TABLES[kernel]
    found = table[max((key for key in table if key <= capability), default=0)]
    for name in (shape, shape.partition("-")[0], "mid", "wide"):
        if name in found:
            return found[name]
    raise KeyError(f"{kernel} has no configuration for {shape}")
