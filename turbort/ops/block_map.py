"""Which key blocks each query block attends to in sparse-linear attention."""

from __future__ import annotations

import torch
from torch import Tensor

from turbort.errors import InputError
from turbort.ops._numeric import no_autocast
from turbort.quant.qtensor import QTensor
from turbort.quant.sums import block_sums, sums_rows, tree_sum


def block_map(q: Tensor | QTensor, k: Tensor | QTensor, topk: float, block: tuple[int, int] = (64, 128)) -> Tensor:
    """The chosen key blocks per query block: int32 [B, H, nq, kk], ascending.

    q [B, Lq, H, d], k [B, Lk, H, d] after norm and RoPE, plain or with their sums (`turbort.precision.SUMS`);
    nq = ceil(Lq / block[0]), nk = ceil(Lk / block[1]) and kk = max(1, min(nk, int(topk * nk))).
    Score = mean of the query block times mean of the smoothed key block (k minus its mean over tokens), without scale or softmax;
    a tail block divides by its real length.

    Sums are float32 additions in a fixed pairwise order, so pooled values are bit-equal on every device; only
    the final dot product over d is a matmul, whose order (and TF32, where the user allows it) is the device's.
    Equal scores go to the lower block index (stable sort). Blocks can therefore differ between devices only
    where two scores agree to about 1e-6 of their size. TurboDiffusion pools in the input dtype instead.

    Raises InputError unless 0 < topk <= 1 and both block edges are positive.
    """
    if not 0.0 < topk <= 1.0:
        raise InputError(f"topk {topk} is outside (0, 1]", fix="give the share of key blocks to keep, such as 0.1")
    if min(block) < 1:
        raise InputError(f"block {block} needs positive edges")
    with torch.no_grad(), no_autocast(plain(q)):
        scores = pooled_scores(q, k, block)
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        return order[..., : chosen_blocks(topk, scores.shape[-1])].sort(dim=-1).values.to(torch.int32)


def chosen_blocks(topk: float, key_blocks: int) -> int:
    """kk = max(1, min(nk, int(topk * nk))): TurboDiffusion's rule with a floor of one block."""
    return max(1, min(key_blocks, int(topk * key_blocks)))


def pooled_scores(q: Tensor | QTensor, k: Tensor | QTensor, block: tuple[int, int]) -> Tensor:
    """float32 [B, H, nq, nk]."""
    q_sums, q_counts = _sums(q, block[0])
    k_sums, k_counts = _sums(k, block[1])
    k_mean = tree_sum(k_sums, dim=1) / k.shape[1]
    q_pool = (q_sums / q_counts).transpose(1, 2)
    k_pool = (k_sums / k_counts - k_mean.unsqueeze(1)).transpose(1, 2)
    return q_pool @ k_pool.transpose(-1, -2)


def plain(x: Tensor | QTensor) -> Tensor:
    """The values of x, which may bring sums along."""
    return x.values if isinstance(x, QTensor) else x


def known_sums(x: Tensor | QTensor, size: int) -> Tensor | None:
    """The sums over blocks of `size` tokens that x brings along, float32 [B, n, H, d]; None if it brings none, or others."""
    return x.scales if isinstance(x, QTensor) and sums_rows(x.scheme) == size else None


def _sums(x: Tensor | QTensor, size: int) -> tuple[Tensor, Tensor]:
    known = known_sums(x, size)
    if known is None:
        return block_sums(plain(x).to(torch.float32), size)
    starts = torch.arange(known.shape[1], device=known.device) * size
    return known, (x.shape[1] - starts).clamp_max(size).to(torch.float32).view(-1, 1, 1)
