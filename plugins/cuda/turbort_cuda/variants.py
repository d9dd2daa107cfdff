"""Configurations worth measuring against each other on a card with tensor descriptors. `check` tries them, `tune` times them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from turbort_cuda.configs import conv_class

Config = dict[str, Any]
BLOCKS = ((64, 128), (128, 128), (128, 64))
"""Geometries of the block map; the first is the default, by which seeds agree between GPUs."""
GLUON = (64, 128)
"""The geometry that `turbort_cuda.kernels.attention_hopper` has."""


def label(config: Config) -> str:
    """A configuration in one word a key, without what all have in common."""
    parts = (f"{key.removeprefix('BLOCK_')}={int(value)}" for key, value in config.items() if (key, value) != ("GROUP", 8))
    return " ".join(parts)


def linears() -> Iterator[Config]:
    """The tile, the depth of the pipeline, and how the end of a tile is hidden; in Gluon, see `kernels.linear_hopper`."""
    base = {"GROUP": 8, "tma": True}
    first = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "stages": 4, "warps": 8, "halves": True, **base}
    yield first
    yield {**first, "stages": 3}
    yield {**first, "stages": 3, "halves": False}
    yield {**first, "BLOCK_M": 256, "BLOCK_N": 128}
    yield {**first, "BLOCK_M": 256, "BLOCK_N": 128, "GROUP": 4}
    yield {**first, "GROUP": 16}
    yield {**first, "flatten": True}
    yield {**first, "flatten": True, "stages": 3}
    yield {**first, "flatten": True, "BLOCK_M": 256, "BLOCK_N": 128}
    yield {**first, "BLOCK_N": 128, "halves": False}
    yield {**first, "BLOCK_N": 128, "halves": False, "stages": 2, "warps": 4, "per_sm": 2}
    yield from hopper_linears()


def hopper_linears() -> Iterator[Config]:
    """Linears in Gluon: how far one warpgroup is ahead of the other, the tile, and shorter steps in more stages."""
    first = {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128, "GROUP": 8, "stages": 4, "warps": 8, "tma": True, "halves": True}
    first |= {"flatten": True, "gluon": True, "lead": 2}
    yield first
    yield {**first, "lead": 1}
    yield {**first, "lead": 0}
    yield {**first, "lead": 3}
    yield {**first, "GROUP": 16}
    yield {**first, "BLOCK_K": 64, "lead": 4}
    yield {**first, "BLOCK_M": 256, "BLOCK_N": 128}


def dense() -> Iterator[Config]:
    """Tiles of dense attention; `ahead` issues the next block's products before this one's softmax.

    Every configuration says whether it is the Gluon kernel: what it leaves out, it gets from the shipped one.
    """
    keys = ("BLOCK_M", "BLOCK_N", "stages", "warps", "tma", "ahead", "gluon")
    for row in (
        (128, 128, 2, 8, True, False, False),
        (128, 128, 3, 8, True, False, False),
        (128, 64, 3, 8, True, False, False),
        (128, 64, 3, 8, True, True, False),
        (128, 128, 2, 8, True, True, False),
        (64, 128, 2, 4, True, False, False),
        (64, 128, 3, 4, True, False, False),
        (64, 128, 3, 4, True, True, False),
        (64, 64, 3, 4, True, False, False),
        (64, 64, 3, 4, True, True, False),
        (64, 64, 4, 4, True, False, False),
        (64, 128, 2, 4, True, False, True),
        (64, 128, 3, 4, True, False, True),
    ):
        yield dict(zip(keys, row, strict=True))
    best = {"BLOCK_M": 64, "BLOCK_N": 128, "stages": 2, "warps": 4, "tma": True, "ahead": False, "gluon": False}
    yield {**best, "maxnreg": 168}  # three programs on a multiprocessor instead of two
    for stages, gluon in ((3, False), (2, True), (3, True)):
        yield {**best, "stages": stages, "gluon": gluon, "biased": True}  # see `kernels.attention.absorb`


def sparse(block: tuple[int, int]) -> Iterator[Config]:
    """The same for block-sparse attention, whose tiles are the geometry of the block map."""
    base = {"tma": True, "ahead": False, "gluon": False, "early": False}
    for stages, warps, ahead in ((2, 4, False), (3, 4, False), (2, 4, True), (3, 4, True), (2, 8, False)):
        yield {**base, "stages": stages, "warps": warps, "ahead": ahead}
    yield {**base, "stages": 3, "warps": 4, "biased": True}
    yield {**base, "stages": 2, "warps": 4, "maxnreg": 168}
    if block == GLUON:
        for stages, early in ((2, False), (3, False), (2, True), (3, True)):
            yield {**base, "stages": stages, "warps": 4, "gluon": True, "early": early}
        yield {**base, "stages": 3, "warps": 4, "gluon": True, "early": True, "biased": True}


def preparations() -> Iterator[Config]:
    """Preparing k and v for SLA: warps of the codes' programs; tile, warps, stages and programs of the linear state's."""
    keys = ("warps", "tile", "state_warps", "state_stages", "per_sm")
    for row, more in (
        ((4, 64, 8, 2, 2), {"maxnreg": 128}),
        ((4, 64, 8, 3, 2), {"maxnreg": 128}),
        ((4, 64, 4, 2, 2), {}),
        ((4, 64, 4, 3, 2), {}),
        ((4, 64, 8, 3, 1), {}),
        ((4, 32, 8, 3, 2), {"maxnreg": 128}),
        ((4, 128, 8, 2, 1), {}),
        ((8, 64, 8, 2, 2), {"maxnreg": 128}),
    ):
        yield {**dict(zip(keys, row, strict=True)), **more}


def rotations() -> Iterator[Config]:
    """RoPE with sums of blocks: rows of a tile, and warps, at the width of the 1.3B model; the shipped configuration first."""
    for rows, warps in ((4, 4), (4, 8), (2, 4)):
        yield {"rows": rows, "warps": warps}


def convolutions(outputs: int) -> Iterator[Config]:
    """Tiles of a 3x3x3 convolution by its outputs; see `kernels.conv3d` for `swap`, `group` and `tail`."""
    keys = ("BH", "BW", "K", "N1", "N2", "stages", "warps")
    for row, more in _CONVOLUTIONS[conv_class(outputs)]:
        yield {**dict(zip(keys, row, strict=True)), "tma": True, **more}


_SWAP, _PAIR, _FLAT = {"swap": True}, {"group": 2}, {"swap": True, "flatten": True}
_CONVOLUTIONS: dict[str, tuple[tuple[tuple[int, ...], Config], ...]] = {
    "o96": (
        ((16, 16, 32, 128, 64, 5, 8), {**_SWAP, **_PAIR}),
        ((16, 16, 32, 128, 0, 6, 8), _SWAP),
        ((16, 16, 32, 128, 0, 6, 8), _FLAT),
        ((16, 16, 32, 128, 0, 4, 8), _SWAP),
        ((8, 32, 32, 128, 0, 6, 8), _SWAP),
        ((4, 64, 32, 128, 0, 6, 8), _SWAP),
        ((16, 16, 64, 128, 0, 3, 8), {**_SWAP, "tail": True}),
        ((8, 16, 32, 128, 0, 5, 4), _SWAP),
        ((8, 16, 32, 128, 0, 5, 4), {**_FLAT, "per_sm": 2}),
        ((16, 16, 32, 64, 32, 6, 8), {}),
        ((8, 16, 32, 64, 32, 5, 4), {}),
        ((8, 16, 32, 128, 64, 6, 8), _PAIR),
    ),
    "o192": (
        ((16, 16, 64, 128, 64, 3, 8), _SWAP),
        ((16, 16, 32, 128, 64, 6, 8), _SWAP),
        ((16, 16, 64, 128, 0, 4, 8), _FLAT),
        ((8, 16, 64, 128, 64, 4, 8), {}),
    ),
    "wide": (
        ((16, 16, 64, 128, 0, 4, 8), _SWAP),
        ((16, 16, 64, 128, 0, 4, 8), _FLAT),
        ((8, 32, 64, 128, 0, 4, 8), _SWAP),
    ),
    "narrow": (
        ((16, 16, 32, 16, 0, 6, 4), {"group": 4}),
        ((16, 16, 32, 16, 0, 6, 8), {"group": 4}),
        ((16, 16, 64, 16, 0, 3, 8), {"group": 4, "tail": True}),
        ((16, 16, 32, 16, 0, 6, 4), {}),
    ),
}
"""What may win on Hopper, the shipped configuration first."""
