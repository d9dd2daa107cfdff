"""Samples of patching and of the VAE's ops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from turbort.op import Sample
from turbort.ops._draw import Draw, sample

Size3 = tuple[int, int, int]


def patchify_samples() -> Iterator[Sample]:
    """Latents as [B, C, T, H, W]."""

    def case(c: int, t: int, h: int, w: int, patch: Size3 = (1, 2, 2), batch: int = 1) -> Any:
        return lambda draw: {"x": draw(batch, c, t, h, w), "patch": patch}

    yield sample("c16-9x16x16", case(16, 9, 16, 16))
    yield sample("c36-3x10x14", case(36, 3, 10, 14), "tail")
    yield sample("b2-c48-4x6x6-p222", case(48, 4, 6, 6, (2, 2, 2), 2), "batch")
    yield sample("c16-21x60x104", case(16, 21, 60, 104), "real")


def unpatchify_samples() -> Iterator[Sample]:
    """Tokens on their way back to latents."""

    def case(c: int, grid: Size3, patch: Size3 = (1, 2, 2), batch: int = 1) -> Any:
        tokens, features = grid[0] * grid[1] * grid[2], patch[0] * patch[1] * patch[2] * c
        return lambda draw: {"x": draw(batch, tokens, features), "grid": grid, "patch": patch, "channels": c}

    yield sample("c16-9x8x8", case(16, (9, 8, 8)))
    yield sample("b2-c3-3x5x7", case(3, (3, 5, 7), batch=2), "tail", "batch")
    yield sample("c16-2x3x3-p222", case(16, (2, 3, 3), (2, 2, 2)))
    yield sample("c16-21x30x52", case(16, (21, 30, 52)), "real")


def causal_conv3d_samples() -> Iterator[Sample]:
    """Kernels of the Wan VAE, with no, part and full cache."""
    yield sample("c16-o24-3x9x11", _conv(16, 24, (3, 9, 11)))
    yield sample("c16-o16-4x8x8-cache2", _conv(16, 16, (4, 8, 8), cached=2))
    yield sample("c16-o16-4x8x8-cache1", _conv(16, 16, (4, 8, 8), cached=1))
    yield sample("c16-o16-1x8x8-cache2", _conv(16, 16, (1, 8, 8), cached=2))
    yield sample("b2-c8-o16-2x7x5-cache2", _conv(8, 16, (2, 7, 5), batch=2, cached=2), "batch", "tail")
    yield sample("c96-o96-1x8x12", _conv(96, 96, (1, 8, 12)), "real")
    yield sample("c384-o384-1x4x4-cache2", _conv(384, 384, (1, 4, 4), cached=2), "real")
    yield sample("c96-o3-2x9x7", _conv(96, 3, (2, 9, 7)), "real", "tail")
    yield sample("c32-o16-2x5x5-point", _conv(32, 16, (2, 5, 5), kernel=(1, 1, 1), padding=(0, 0, 0)))
    yield sample("c16-o32-2x6x6-time", _conv(16, 32, (2, 6, 6), kernel=(3, 1, 1), padding=(1, 0, 0), cached=2))
    yield sample("c16-o16-5x6x6-stride2", _conv(16, 16, (5, 6, 6), kernel=(3, 1, 1), padding=(0, 0, 0), stride=(2, 1, 1)))
    yield sample("c16-o16-2x6x6-nobias", _conv(16, 16, (2, 6, 6), bias=False))
    yield sample("c96-o96-4x480x832-cache2", _conv(96, 96, (4, 480, 832), cached=2), "large", "real")


def _conv(
    c: int,
    o: int,
    size: Size3,
    *,
    kernel: Size3 = (3, 3, 3),
    padding: Size3 = (1, 1, 1),
    stride: Size3 = (1, 1, 1),
    batch: int = 1,
    cached: int = 0,
    bias: bool = True,
) -> Callable[[Draw], dict[str, Any]]:
    def make(draw: Draw) -> dict[str, Any]:
        fan_in = c * kernel[0] * kernel[1] * kernel[2]
        return {
            "x": draw(batch, c, *size),
            "weight": draw(o, c, *kernel, scale=fan_in**-0.5),
            "bias": draw(o, scale=0.1) if bias else None,
            "cache": draw(batch, c, cached, *size[1:]) if cached else None,
            "stride": stride,
            "padding": padding,
        }

    return make


def vae_norm_silu_samples() -> Iterator[Sample]:
    """Channel norms, an all-zero input among them."""

    def case(c: int, *size: int, batch: int = 1, **kind: Any) -> Any:
        return lambda draw: {"x": draw(batch, c, *size, **kind), "gamma": draw(c, 1, 1, 1, mean=1.0)}

    yield sample("c16-3x9x11", case(16, 3, 9, 11), "tail")
    yield sample("c96-2x16x16", case(96, 2, 16, 16), "real")
    yield sample("c384-1x7x13", case(384, 1, 7, 13), "real", "tail")
    yield sample("b2-c192-2x5x5-mean", case(192, 2, 5, 5, batch=2, mean=3.0), "mean", "batch")
    yield sample("c32-2x5x97-outlier", case(32, 2, 5, 97, outlier=True), "outlier")
    yield sample("c32-1x4x4-zeros", case(32, 1, 4, 4, scale=0.0))
    yield sample("c96-4x480x832", case(96, 4, 480, 832), "large", "real")


def vae_upsample_samples() -> Iterator[Sample]:
    """Upsampling stages of the Wan VAE."""

    def case(c: int, o: int, *size: int, batch: int = 1) -> Any:
        def make(draw: Draw) -> dict[str, Any]:
            weight = draw(o, c, 3, 3, scale=(9 * c) ** -0.5)
            return {"x": draw(batch, c, *size), "weight": weight, "bias": draw(o, scale=0.1)}

        return make

    yield sample("c16-o8-3x5x7", case(16, 8, 3, 5, 7), "tail")
    yield sample("c192-o96-1x6x8", case(192, 96, 1, 6, 8), "real")
    yield sample("c384-o192-1x4x4", case(384, 192, 1, 4, 4), "real")
    yield sample("b2-c8-o8-2x3x3", case(8, 8, 2, 3, 3, batch=2), "batch")
    yield sample("c192-o96-4x240x416", case(192, 96, 4, 240, 416), "large", "real")
