"""Attention at W: dense against cuDNN, FlashAttention-2 and SageAttention 1.0.6, SLA with its parts, and configurations."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import nmse
from benchmarks.cuda.workload import HEAD, HEADS, TEXT, TOKENS

DENSE = 4.0 * TOKENS * TOKENS * HEAD * HEADS


def run(results: Results, args: argparse.Namespace) -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    q, k, v = (torch.randn(1, TOKENS, HEADS, HEAD, device="cuda", generator=draw).to(torch.bfloat16) for _ in range(3))
    truth = _sdpa(q, k, v, SDPBackend.CUDNN_ATTENTION)
    _dense(results, q, k, v, truth, tune=args.tune)
    _sla(results, q, k, v, tune=args.tune)
    text = torch.randn(2, 1, TEXT, HEADS, HEAD, device="cuda").to(torch.bfloat16)
    work = 4.0 * TOKENS * TEXT * HEAD * HEADS
    results.time("cross cuDNN bf16", lambda: _sdpa(q, text[0], text[1], SDPBackend.CUDNN_ATTENTION), flop=work)


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


def _dense(results: Results, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, truth: torch.Tensor, *, tune: bool) -> None:
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
        for config in _variants() if tune else ():
            label = " ".join(f"{key}={value}" for key, value in config.items())
            _timed(
                results,
                f"dense {precision} {label}",
                lambda p=precision, c=config: attention(q, k, v, precision=p, config=c),
                truth,
                DENSE,
                config=config,
            )


def _variants() -> list[dict[str, Any]]:
    keys = ("BLOCK_M", "BLOCK_N", "stages", "warps", "tma")
    rows = (
        (128, 128, 2, 8, True),
        (128, 128, 3, 8, True),
        (128, 128, 1, 8, True),
        (128, 64, 3, 8, True),
        (64, 128, 2, 4, True),
        (64, 64, 3, 4, True),
        (128, 128, 2, 8, False),
    )
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _sla(results: Results, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, tune: bool) -> None:
    from turbort_cuda.kernels import kv, sla

    from turbort.ops.block_map import chosen_blocks

    proj, bias = torch.randn(HEAD, HEAD, device="cuda") * HEAD**-0.5, torch.randn(HEAD, device="cuda")
    proj, bias = proj.to(q.dtype), bias.to(q.dtype)
    tokens = q.element_size() * q.numel()
    for block in ((64, 128), (128, 64), (128, 128)):
        kept = chosen_blocks(0.1, -(-TOKENS // block[1]))
        work = 4.0 * TOKENS * kept * block[1] * HEAD * HEADS
        for precision in (None, "int8", "int8-fp8"):
            results.time(
                f"SLA {precision or 'bf16'} {block[0]}x{block[1]} topk 0.1",
                lambda p=precision, b=block: sla.sla_attention(q, k, v, proj, bias, topk=0.1, block=b, precision=p),
                flop=work,
            )
        if not tune:
            break
    results.time("SLA part: sums of k, max of v", lambda: kv.block_sums(k, 128, v), bytes_=2.0 * tokens)
    results.time("SLA part: sums of q", lambda: kv.block_sums(q, 64), bytes_=1.0 * tokens)
    results.time(
        "SLA part: prepare k and v (two passes)",
        lambda: kv.prepare(k, v, 128, int8=True, fp8=True, linear=True),
        bytes_=5.0 * tokens,
    )
    sums = kv.block_sums(q, 64)[0], kv.block_sums(k, 128)[0]
    results.time("SLA part: scores and choice", lambda: sla.choose(sla.scores_of(*sums, (TOKENS, TOKENS), (64, 128)), 25))
    for config in (
        (
            {"stages": 1, "warps": 4, "tma": True},
            {"stages": 2, "warps": 4, "tma": True},
            {"stages": 3, "warps": 4, "tma": True},
            {"stages": 2, "warps": 4, "tma": False},
            {"stages": 2, "warps": 8, "tma": True},
        )
        if tune
        else ()
    ):
        label = " ".join(f"{key}={value}" for key, value in config.items())
        results.time(
            f"SLA int8-fp8 {label}",
            lambda c=config: sla.sla_attention(q, k, v, proj, bias, topk=0.1, precision="int8-fp8", config=c),
            config=config,
        )
