"""Exact int8 x int8 -> int32 matrix products on any torch device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from turbort.quant.cpuinfo import has_vnni

EXACT_CHUNK = 1024
"""128 * 128 * 1024 = 2**24: up to here a float32 sum of int8 products is exact in any order."""


def int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """int32 [M, N] = a [M, K] int8 times b [N, K] int8 transposed, exact for K < 2**17.

    CPUs with VNNI and CUDA use `torch._int_mm`; everything else sums exact float32 chunks.
    """
    # With one input, torch 2.13's CPU product returns uninitialised memory: oneDNN cannot tell the strides apart.
    if a.device.type == "cpu" and has_vnni() and a.shape[1] > 1:
        return torch._int_mm(a, b.t())
    if a.device.type == "cuda":
        return _cuda_int_mm(a, b)
    return chunked_int_matmul(a, b)


def _cuda_int_mm(a: Tensor, b: Tensor) -> Tensor:
    m, k = a.shape
    n = b.shape[0]
    # cuBLAS wants more than 16 rows and inner sizes in multiples of 8; zero padding changes no sum.
    rows = F.pad(a, (0, -k % 16, 0, max(-m % 16, 32 - m)))
    cols = F.pad(b, (0, -k % 16, 0, -n % 16))
    return torch._int_mm(rows.contiguous(), cols.contiguous().t())[:m, :n].contiguous()


def chunked_int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The same product from float32 matmuls over at most 1024 inputs each, added as int32.

    int8 values are exact even where a device rounds matmul inputs to TF32 or bfloat16.
    """
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    with torch.autocast(a.device.type if a.device.type != "meta" else "cpu", enabled=False):
        for start in range(0, a.shape[1], EXACT_CHUNK):
            span = slice(start, start + EXACT_CHUNK)
            total += (a[:, span].to(torch.float32) @ b[:, span].to(torch.float32).t()).to(torch.int32)
    return total
