"""Block-sparse quantised weights (`bsq8`, `bsq4`): square tiles with one scale each and a keep mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.errors import InputError
from turbort.quant.int4 import fit_scales, pack_nibbles, unpack_nibbles

TILES = (4, 8)
FLOOR = 1e-8


def to_tiles(weight: Tensor, tile: int) -> Tensor:
    """[N, K] -> [ceil(N/t), ceil(K/t), t, t], zero-padded at the right and bottom edge."""
    if tile not in TILES:
        raise InputError(f"a block-sparse tile has edge {' or '.join(map(str, TILES))}, not {tile}")
    n, k = weight.shape
    padded = F.pad(weight, (0, -k % tile, 0, -n % tile))
    rows, cols = padded.shape[0] // tile, padded.shape[1] // tile
    return padded.view(rows, tile, cols, tile).transpose(1, 2)


def from_tiles(tiles: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `to_tiles`, cut to [n, k]."""
    rows, cols, tile, _ = tiles.shape
    return tiles.transpose(1, 2).reshape(rows * tile, cols * tile)[:n, :k].contiguous()


def block_mask(weight: Tensor, tile: int, density: float) -> Tensor:
    """Which tiles to keep: the `round(density * tiles)` (at least one) with the largest sum of squares.

    bool [ceil(N/t), ceil(K/t)]; ties go to the lower index.
    """
    if not 0.0 < density <= 1.0:
        raise InputError(f"density {density} is outside (0, 1]", fix="give the share of tiles to keep, such as 0.3")
    energy = to_tiles(weight.detach().to(torch.float32), tile).square().sum(dim=(2, 3))
    keep = max(1, round(density * energy.numel()))
    order = energy.flatten().sort(descending=True, stable=True).indices
    mask = torch.zeros(energy.numel(), dtype=torch.bool, device=weight.device)
    return mask.scatter(0, order[:keep], True).view(energy.shape)


def apply_mask(weight: Tensor, tile: int, mask: Tensor) -> Tensor:
    """`weight` with the dropped tiles set to zero."""
    n, k = weight.shape
    spread = mask.repeat_interleave(tile, 0)[:n].repeat_interleave(tile, 1)[:, :k]
    return weight * spread.to(weight.dtype)


def block_sparsify(weight: Tensor, tile: int, density: float) -> Tensor:
    """`weight` [N, K] with all but the strongest `density` of its tiles set to zero (magnitude pruning)."""
    return apply_mask(weight, tile, block_mask(weight, tile, density))


def quantize_tiles(weight: Tensor, tile: int, bits: int, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """One scale per tile: amax/127 for 8 bits, least-squares clipping for 4 bits.

    weight [N, K] -> int8 codes [N, K] (0 in dropped tiles), float32 scales and bool mask, both
    [ceil(N/t), ceil(K/t)]. Without `mask`, the tiles that are not all zero are kept.
    """
    n, k = weight.shape
    tiles = to_tiles(weight.to(torch.float32), tile).flatten(2)
    kept = tiles.ne(0).any(dim=-1) if mask is None else mask
    if bits == 8:
        scales = tiles.abs().amax(dim=-1, keepdim=True).clamp_min(FLOOR) / 127.0
        codes = (tiles / scales).round().clamp(-128, 127)
    else:
        scales = fit_scales(tiles)
        codes = (tiles / scales).round().clamp(-8, 7)
    codes = torch.where(kept.unsqueeze(-1), codes, torch.zeros_like(codes)).to(torch.int8)
    return from_tiles(codes.view(*codes.shape[:2], tile, tile), n, k), scales.squeeze(-1), kept


def dequantize_tiles(values: Tensor, scales: Tensor, tile: int) -> Tensor:
    """w = q * s in float32."""
    n, k = values.shape
    return values.to(torch.float32) * scales.repeat_interleave(tile, 0)[:n].repeat_interleave(tile, 1)[:, :k]


@dataclass(frozen=True)
class CompactTiles:
    """Kept tiles only, in row-major order: what a file stores and a sparse kernel starts from.

    Attributes:
        codes: int8 [kept, t, t], or uint8 [kept, t*t/2] nibbles for 4 bits.
        scales: float32 [kept].
        columns: int32 [kept], tile column of each kept tile.
        row_starts: int32 [tile rows + 1], where each tile row begins in the three arrays above.
        shape: [N, K] of the dense weight.
    """

    codes: Tensor
    scales: Tensor
    columns: Tensor
    row_starts: Tensor
    shape: tuple[int, int]
    tile: int
    bits: int


def compact(values: Tensor, scales: Tensor, mask: Tensor, tile: int, bits: int) -> CompactTiles:
    """Store only the kept tiles (compressed sparse rows over tiles)."""
    tiles = to_tiles(values, tile)[mask]
    codes = pack_nibbles(tiles.flatten(1)) if bits == 4 else tiles.contiguous()
    starts = F.pad(mask.sum(dim=1).cumsum(0), (1, 0)).to(torch.int32)
    columns = mask.nonzero()[:, 1].to(torch.int32)
    n, k = values.shape
    return CompactTiles(codes, scales[mask], columns, starts, (n, k), tile, bits)


def expand(stored: CompactTiles) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `compact`: codes [N, K], scales and mask per tile (scale 1 where a tile was dropped)."""
    n, k = stored.shape
    t = stored.tile
    rows, cols = -(-n // t), -(-k // t)
    device = stored.scales.device
    counts = stored.row_starts.diff().to(torch.int64)
    row = torch.repeat_interleave(torch.arange(rows, device=device), counts)
    where = (row, stored.columns.to(torch.int64))
    flat = unpack_nibbles(stored.codes, t * t) if stored.bits == 4 else stored.codes
    tiles = torch.zeros(rows, cols, t, t, dtype=torch.int8, device=device)
    tiles[where] = flat.reshape(-1, t, t)
    scales = torch.ones(rows, cols, dtype=torch.float32, device=device)
    scales[where] = stored.scales
    mask = torch.zeros(rows, cols, dtype=torch.bool, device=device)
    mask[where] = True
    return from_tiles(tiles, n, k), scales, mask
