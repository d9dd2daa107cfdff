"""Dense softmax attention: float, INT8 QK, and INT8 QK with e4m3 PV."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.op import op
from turbort.ops.attention_int8 import int8_attention
from turbort.ops.samples_attention import attention_samples
from turbort.precision import ATTENTION, FLOATS

SCORE_BUDGET = 1 << 27
"""Scores held at once on devices whose SDPA may store them all (2**27 float32 = 512 MiB)."""

FUSED_SDPA = frozenset({"cpu", "cuda", "meta"})


@op(samples=attention_samples, precisions=FLOATS + ATTENTION)
def attention(q: Tensor, k: Tensor, v: Tensor, *, precision: str | None = None) -> Tensor:
    """o = softmax(q k^T / sqrt(d)) v, all keys visible to all queries.

    q [B, Lq, H, d]; k, v [B, Lk, H, d]; returns [B, Lq, H, d] in `q.dtype`.
    `precision` None computes in the input dtype (softmax in float32); `int8` and `int8-fp8` follow
    `turbort.ops.attention_int8`.
    """
    if precision is not None:
        return int8_attention(q, k, v, precision)
    return dense(q, k.to(q.dtype), v.to(q.dtype))


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Float attention in [B, L, H, d]; query chunks bound memory where SDPA is not known to be fused."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if q.device.type in FUSED_SDPA:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    rows = max(1, SCORE_BUDGET // (q.shape[0] * q.shape[1] * k.shape[2]))
    parts = [F.scaled_dot_product_attention(part, k, v) for part in q.split(rows, dim=2)]
    return torch.cat(parts, dim=2).transpose(1, 2)
