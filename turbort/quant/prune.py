"""Choosing the tiles of a block-sparse weight that are kept: by magnitude, or by what the layer's output would lose.

With H = E[x x^T] over a layer's inputs, replacing W by W' costs E|(W - W') x|^2 = tr((W - W') H (W - W')^T). Dropping the tile of
rows r and inputs B, with all other weights of those rows free to make up for it, costs  w_rB ((H^-1)_BB)^-1 w_rB^T  summed over
the rows (optimal brain surgeon, for groups of weights). `second_order` keeps the tiles that would cost most, and then walks
through the inputs once, moving what each dropped tile did to inputs further right (as SparseGPT does for single weights).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from turbort.errors import InputError
from turbort.quant.bsq import apply_mask, block_mask, to_tiles

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it, so that it can be inverted where inputs are never seen."""


@dataclass(frozen=True)
class Pruned:
    """A weight with dropped tiles set to zero, and bool per tile: which are kept."""

    weight: Tensor
    mask: Tensor


def by_magnitude(weight: Tensor, tile: int, density: float) -> Pruned:
    """Keep the `round(density * tiles)` tiles with the largest sum of squares; nothing else changes."""
    mask = block_mask(weight, tile, density)
    return Pruned(apply_mask(weight, tile, mask), mask)


def second_order(weight: Tensor, moments: Tensor, tile: int, density: float) -> Pruned:
    """Keep the tiles that are hardest to do without, and let kept weights make up for dropped ones.

    weight [N, K], moments H [K, K], both float32. Raises InputError where H does not fit the weight.
    """
    n, k = weight.shape
    if moments.shape != (k, k):
        raise InputError(f"moments of {tuple(moments.shape)} do not belong to a weight with {k} inputs")
    if not 0.0 < density <= 1.0:
        raise InputError(f"density {density} is outside (0, 1]", fix="give the share of tiles to keep, such as 0.3")
    inverse = _inverse(moments)
    mask = _hardest(saliency(weight, inverse, tile), density)
    keep = mask.repeat_interleave(tile, 0)[:n].repeat_interleave(tile, 1)[:, :k]
    upper = torch.linalg.cholesky(inverse, upper=True)
    left = weight.to(torch.float32).clone()
    for start in range(0, k, tile):
        span = slice(start, min(start + tile, k))
        dropped = torch.where(keep[:, span], 0.0, left[:, span])
        # Inputs before this tile are settled, so the inverse that is left is U^T U of the lower right part.
        push = torch.linalg.solve_triangular(upper[span, span], dropped, upper=True, left=False)
        left[:, span.stop :] -= push @ upper[span, span.stop :]
        left[:, span] -= dropped
    return Pruned(left, mask)


def saliency(weight: Tensor, inverse: Tensor, tile: int) -> Tensor:
    """w_B ((H^-1)_BB)^-1 w_B^T per tile [ceil(N/t), ceil(K/t)], given H^-1 [K, K]."""
    tiles = to_tiles(weight.to(torch.float32), tile)
    k = weight.shape[1]
    found = torch.empty(tiles.shape[:2], device=weight.device)
    for column in range(tiles.shape[1]):
        span = slice(column * tile, min((column + 1) * tile, k))
        part = tiles[:, column, :, : span.stop - span.start]
        solved = torch.linalg.solve(inverse[span, span], part.flatten(0, 1).t()).t().reshape(part.shape)
        found[:, column] = (part * solved).sum(dim=(1, 2))
    return found


def output_error(weight: Tensor, changed: Tensor, moments: Tensor) -> float:
    """E|(W - W') x|^2 over E|W x|^2."""

    def energy(w: Tensor) -> float:
        return float((w.to(torch.float32) @ moments * w.to(torch.float32)).sum())

    whole = energy(weight)
    return energy(weight.to(torch.float32) - changed.to(torch.float32)) / whole if whole > 0 else 0.0


def _inverse(moments: Tensor) -> Tensor:
    """(H + damping I)^-1, in float32."""
    h = moments.to(torch.float32)
    damp = DAMPING * float(h.diagonal().mean()) or 1.0
    return torch.cholesky_inverse(torch.linalg.cholesky(h + damp * torch.eye(len(h), device=h.device)))


def _hardest(scores: Tensor, density: float) -> Tensor:
    keep = max(1, round(density * scores.numel()))
    order = scores.flatten().sort(descending=True, stable=True).indices
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    return mask.scatter(0, order[:keep], True).view(scores.shape)


__all__ = ["Pruned", "by_magnitude", "output_error", "saliency", "second_order"]
