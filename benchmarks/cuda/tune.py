"""Configurations of the linears and of attention against each other; `--save` keeps the best for this card."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.cuda.attention import DENSE, drawn, sparse_work
from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import DEVICE
from benchmarks.cuda.variants import BLOCKS, Config, dense, label, linears, sparse
from benchmarks.cuda.workload import DIM, FFN, HEAD, TOKENS, TOY

SECONDS = 0.06


def run(results: Results, args: argparse.Namespace) -> None:
    sizes = ((FFN, DIM), (DIM, FFN), (DIM, DIM))
    for n, k in sizes:
        _linear(results, n, k, save=args.save)
    q, k_, v = drawn()
    for precision in ("int8-fp8", "int8"):
        _dense(results, (q, k_, v), precision, save=args.save)
    _sparse(results, (q, k_, v), save=args.save)


def _best(
    results: Results,
    title: str,
    configs: Iterator[Config],
    call: Callable[[Config], Any],
    flop: float,
    save: tuple[str, str] | None,
) -> None:
    """Time every configuration; note the fastest, and keep it under `save` (kernel, key)."""
    found: list[tuple[float, Config]] = []
    for config in configs:
        timed = results.time(f"{title} {label(config)}", lambda c=config: call(c), flop=flop, seconds=SECONDS, config=config)
        if timed:
            found.append((timed.ms, config))
    if not found:
        return
    ms, config = min(found, key=lambda pair: pair[0])
    results.note(f"{title} best", ms=ms, tflop_s=flop / ms / 1e9, config=config)
    if save and not TOY:
        from turbort_cuda.tuning import save as keep

        major, minor = torch.cuda.get_device_capability()
        keep(f"sm_{major}{minor}", *save, config)


def _linear(results: Results, n: int, k: int, *, save: bool) -> None:
    from turbort_cuda.kernels import linear8, quant

    x = quant.quantize(torch.randn(TOKENS, k, device=DEVICE).to(torch.bfloat16), emit="int8-token")
    weight = linear8.empty_weight(n, k, fp8=False, device=torch.device(DEVICE))
    _best(
        results,
        f"tune w8a8 {k}->{n}",
        linears(),
        lambda config: linear8.linear(x, weight, config=config),
        2.0 * TOKENS * n * k,
        ("linear8", f"{n}x{k}") if save else None,
    )


def _dense(results: Results, qkv: tuple[torch.Tensor, ...], precision: str, *, save: bool) -> None:
    from turbort_cuda.kernels.attention import attention

    _best(
        results,
        f"tune attention {precision}",
        dense(),
        lambda config: attention(*qkv, precision=precision, config=config),
        DENSE,
        ("attention", f"dense-{precision}") if save else None,
    )


def _sparse(results: Results, qkv: tuple[torch.Tensor, ...], *, save: bool) -> None:
    from turbort_cuda.kernels import sla

    proj = (torch.randn(HEAD, HEAD, device=DEVICE) * HEAD**-0.5).to(torch.bfloat16)
    for block in BLOCKS:
        _best(
            results,
            f"tune SLA int8-fp8 {block[0]}x{block[1]}",
            sparse(),
            lambda config, b=block: sla.sla_attention(
                *qkv, proj, proj[0], topk=0.1, block=b, precision="int8-fp8", config=config
            ),
            sparse_work(block),
            ("attention", "sparse") if save and block == (64, 128) else None,
        )
