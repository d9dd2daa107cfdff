"""Attention at W: dense against cuDNN, FlashAttention-2 and SageAttention 1.0.6, SLA with its parts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from turbort_cuda import variants

from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import DEVICE, nmse
from benchmarks.cuda.workload import HEAD, HEADS, TEXT, TOKENS

DENSE = 4.0 * TOKENS * TOKENS * HEAD * HEADS


def run(results: Results, args: argparse.Namespace) -> None:
    q, k, v = drawn()
    truth = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    _dense(results, q, k, v, truth)
    _sla(results, q, k, v)
    text = torch.randn(2, 1, TEXT, HEADS, HEAD, device=DEVICE).to(torch.bfloat16)
    work = 4.0 * TOKENS * TEXT * HEAD * HEADS
    results.time("cross cuDNN bf16", lambda: _sdpa(q, text[0], text[1], SDPBackend.CUDNN_ATTENTION), flop=work)


def drawn() -> tuple[torch.Tensor, ...]:
    """q, k and v of the workload, N(0, 1) in bfloat16."""
    draw = torch.Generator(DEVICE).manual_seed(0)
    return tuple(torch.randn(1, TOKENS, HEADS, HEAD, device=DEVICE, generator=draw).to(torch.bfloat16) for _ in range(3))


def sparse_work(block: tuple[int, int]) -> float:
    """FLOP of the sparse branch at topk 0.1."""
    from turbort.ops.block_map import chosen_blocks

    return 4.0 * TOKENS * chosen_blocks(0.1, -(-TOKENS // block[1])) * block[1] * HEAD * HEADS


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: SDPBackend) -> torch.Tensor:
    with sdpa_kernel([backend]):
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


def _timed(results: Results, name: str, call: Callable[[], torch.Tensor], truth: torch.Tensor, flop: float, **more: Any) -> None:
    try:
        error = nmse(call(), truth) ** 0.5
    except Exception as failure:  # noqa: BLE001 - `time` reports it
        error = float("nan")
        more = {**more, "failed": str(failure)[:200]}
    results.time(name, call, flop=flop, relative_error=error, **more)


def _dense(results: Results, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, truth: torch.Tensor) -> None:
    from turbort_cuda.kernels.attention import attention

    results.time("dense torch cuDNN bf16", lambda: _sdpa(q, k, v, SDPBackend.CUDNN_ATTENTION), flop=DENSE)
    results.time("dense torch FlashAttention-2 bf16", lambda: _sdpa(q, k, v, SDPBackend.FLASH_ATTENTION), flop=DENSE)
    try:
        from sageattention import sageattn
    except ImportError:
        results.note("dense SageAttention", error="not installed; carry the wheel of sageattention 1.0.6")
    else:
        heads_first = [t.transpose(1, 2).to(torch.float16).contiguous() for t in (q, k, v)]
        _timed(results, "dense SageAttention 1.0.6", lambda: sageattn(*heads_first).transpose(1, 2), truth, DENSE)
    for precision in ("int8", "int8-fp8"):
        _timed(results, f"dense ours {precision}", lambda p=precision: attention(q, k, v, precision=p), truth, DENSE)


def _sla(results: Results, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    from turbort_cuda.kernels import kv, rope, sla, sums

    from turbort.ops.block_map import chosen_blocks
    from turbort.quant.schemes import quantize

    proj, bias = torch.randn(HEAD, HEAD, device=DEVICE) * HEAD**-0.5, torch.randn(HEAD, device=DEVICE)
    proj, bias = proj.to(q.dtype), bias.to(q.dtype)
    tokens = q.element_size() * q.numel()
    for precision in ("int8-fp8", "int8", None):
        results.time(
            f"SLA {precision or 'bf16'} 64x128 topk 0.1",
            lambda p=precision: sla.sla_attention(q, k, v, proj, bias, topk=0.1, precision=p),
            flop=sparse_work((64, 128)),
        )
    handed = quantize(q, "sums-64"), quantize(k, "sums-128")
    for config in (
        {},
        {"biased": True},
        {"early": False},
        {"gluon": False, "early": False},
        {"gluon": False, "early": False, "biased": True},
        {"gluon": False, "early": False, "stages": 2},
    ):
        results.time(
            f"SLA int8-fp8 with sums from RoPE {variants.label(config)}",
            lambda c=config: sla.sla_attention(*handed, v, proj, bias, topk=0.1, precision="int8-fp8", config=c),
            flop=sparse_work((64, 128)),
        )
    results.time("SLA part: sums of k, max of v", lambda: sums.block_sums(k, 128, v), bytes_=2.0 * tokens)
    results.time("SLA part: max of v", lambda: sums.block_sums(None, 128, v), bytes_=1.0 * tokens)
    results.time("SLA part: sums of q", lambda: sums.block_sums(q, 64), bytes_=1.0 * tokens)
    for config in variants.preparations():
        results.time(
            f"SLA part: max of v, scales, codes, state; {variants.label(config)}",
            lambda c=config: kv.prepare(k, v, 128, int8=True, fp8=True, linear=True, sums=handed[1].scales, proj=proj, config=c),
            bytes_=4.0 * tokens,
        )
    flat, angles = q.flatten(2), torch.rand(TOKENS, HEAD // 2, device=DEVICE)
    given = flat, torch.ones(HEADS * HEAD, device=DEVICE), angles.cos(), angles.sin()
    moved = 2.0 * tokens + 2.0 * angles.numel() * 4
    results.time("SLA part: RoPE", lambda: rope.qk_norm_rope(*given, heads=HEADS), bytes_=moved)
    for emit in ("sums-64", "sums-128"):
        for config in variants.rotations():
            results.time(
                f"SLA part: RoPE -> {emit}; {variants.label(config)}",
                lambda e=emit, c=config: rope.qk_norm_rope(*given, heads=HEADS, emit=e, config=c),
                bytes_=moved,
            )
    results.time(
        "dense part: sums, scales, codes",
        lambda: kv.prepare(k, v, 128, int8=True, fp8=True, linear=False),
        bytes_=5.0 * tokens,
    )
    tops = sums.block_sums(None, 128, v)[1]
    results.time("SLA part: mean, scales, block means", lambda: sums.finish_sums(handed[1].scales, tops, TOKENS, 128, pool=True))
    results.time("SLA part: scores", lambda: sla.scores_of(handed[0].scales, handed[1].scales))
    scores = sla.scores_of(handed[0].scales, handed[1].scales)
    results.time("SLA part: choice", lambda: sla.choose(scores, chosen_blocks(0.1, scores.shape[-1])))
