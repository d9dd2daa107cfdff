"""Decoding in tiles: each part of the picture on its own, overlapping, blended on the host."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from turbort.models.wan_vae import WanVae

OVERLAP = 4
"""One over the share of a tile that it has in common with its neighbour."""


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Beginnings and ends that cover `length` with pieces of `tile`, each overlapping the next by at least a quarter."""
    if length <= tile:
        return [(0, length)]
    step = tile - max(1, tile // OVERLAP)
    gaps = -(-(length - tile) // step)
    starts = [number * (length - tile) // gaps for number in range(gaps + 1)]
    return [(start, start + tile) for start in starts]


def ramp(span: tuple[int, int], length: int, scale: int, tile: int) -> Tensor:
    """Weights of a tile along one axis in pixels: rising from 0 to 1 over the overlap at ends that have a neighbour."""
    size, fade = (span[1] - span[0]) * scale, max(1, tile // OVERLAP) * scale
    edge = (torch.arange(size, dtype=torch.float32) + 0.5) / fade
    weights = torch.ones(size)
    if span[0] > 0:
        weights = torch.minimum(weights, edge)
    if span[1] < length:
        weights = torch.minimum(weights, edge.flip(0))
    return weights


def decode_tiles(vae: WanVae, latents: Tensor, tile: tuple[int, int], chunk: int) -> Iterator[tuple[int, int, Tensor | None]]:
    """Pixels [3, T, H, W] of latents [1, z, t, h, w], from tiles of (height, width) pixels.

    Yields (done, total, None) after each tile and (total, total, video) at the end; the video is float32 on the host. Near
    a seam a pixel is the weighted mean of two decodings, which differ because each sees its own tile alone.
    """
    down, across = vae.config.stride[1:]
    height, width = latents.shape[3:]
    rows, columns = (max(2, tile[0] // down), max(2, tile[1] // across))
    places = [(y, x) for y in spans(height, rows) for x in spans(width, columns)]
    video = weight = torch.zeros(0)
    for number, (y, x) in enumerate(places, start=1):
        part = latents[:, :, :, y[0] : y[1], x[0] : x[1]]
        pixels = torch.cat([piece[0].float().cpu() for piece in vae.decode_stream(part, chunk=chunk)], dim=1)
        if number == 1:
            video = torch.zeros(*pixels.shape[:2], height * down, width * across)
            weight = torch.zeros(height * down, width * across)
        mask = ramp(y, height, down, rows)[:, None] * ramp(x, width, across, columns)
        place = (slice(y[0] * down, y[1] * down), slice(x[0] * across, x[1] * across))
        video[:, :, place[0], place[1]] += pixels * mask
        weight[place] += mask
        yield number, len(places), None
    yield len(places), len(places), video / weight
