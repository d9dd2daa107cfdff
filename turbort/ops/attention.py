"""Dense softmax attention: float, INT8 QK, and INT8 QK with e4m3 PV."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.op import op
from turbort.ops._numeric import compute_dtype
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
    return dense(q, k, v)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Float attention in [B, L, H, d]; query chunks bound memory where SDPA is not known to be fused."""
    dtype = compute_dtype(q)
    queries, keys, values = (t.to(dtype).transpose(1, 2) for t in (q, k, v))
    if q.device.type in FUSED_SDPA:
        out = F.scaled_dot_product_attention(queries, keys, values)
    else:
        rows = max(1, SCORE_BUDGET // (q.shape[0] * q.shape[2] * k.shape[1]))
        parts = [F.scaled_dot_product_attention(part, keys, values) for part in torch.split(queries, rows, dim=2)]
        out = torch.cat(parts, dim=2)
    return out.transpose(1, 2).to(q.dtype)
