"""Checks of attention at W, of every configuration that `tune` times, and of the Hopper kernel at small sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turbort_cuda import variants

from benchmarks.cuda.check_inputs import Check, Pair, randn
from benchmarks.cuda.timing import DEVICE
from benchmarks.cuda.workload import DIM, FFN, HEAD, HEADS, TEXT, TOKENS


def dense() -> Iterator[Check]:
    for precision in ("int8", "int8-fp8"):
        yield f"attention {precision} W", precision, lambda p=precision: _attention(p, TOKENS)
    for precision in ("int8", "int8-fp8"):
        yield f"attention {precision} W to {TEXT} keys", precision, lambda p=precision: _attention(p, TEXT)


def _attention(precision: str, keys: int, config: dict[str, Any] | None = None) -> Pair:
    from turbort_cuda.kernels import attention, sdpa

    q, k, v = (randn(1, length + shift, HEADS, HEAD)[:, :length] for shift, length in ((0, TOKENS), (1, keys), (2, keys)))
    # 16-bit attention is far more exact than any int8 budget.
    return lambda: attention.attention(q, k, v, precision=precision, config=config), lambda: sdpa.attention(q, k, v)


def sparse() -> Iterator[Check]:
    yield "block choice W", "fp32", _choice
    for precision in ("int8-fp8", "int8", None):
        yield f"sla_attention {precision} W topk 0.1", precision or "bf16", lambda p=precision: _sla(p)


def _clustered() -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys with something in common by runs of 64 tokens, as neighbouring pixels have."""
    runs = torch.arange(TOKENS, device=DEVICE) // 64
    common = randn(TOKENS // 64 + 1, HEADS, HEAD)[runs][None]
    q, k, v = (common + 0.5 * randn(1, TOKENS + shift, HEADS, HEAD)[:, :TOKENS] for shift in (0, 1, 2))
    return q, k, v


def _sla(precision: str | None, block: tuple[int, int] = (64, 128), config: dict[str, Any] | None = None) -> Pair:
    from turbort_cuda.kernels import sla

    from turbort import ops

    q, k, v = _clustered()
    proj, bias = randn(HEAD, HEAD, scale=HEAD**-0.5), randn(HEAD, scale=0.1)
    return (
        lambda: sla.sla_attention(q, k, v, proj, bias, topk=0.1, block=block, precision=precision, config=config),
        lambda: ops.sla_attention(q, k, v, proj, bias, topk=0.1, block=block),
    )


def _choice() -> Pair:
    from turbort_cuda.kernels import sla, sums

    from turbort.ops.block_map import block_map

    q, k, _ = _clustered()
    want = block_map(q, k, 0.1)

    def ours() -> Tensor:
        pooled = sums.finish_sums(sums.block_sums(k, 128)[0], None, TOKENS, 128, pool=True)[2]
        scores = sla.scores_of(sums.block_sums(q, 64)[0], pooled)
        return sla.choose(scores, want.shape[-1])

    return ours, lambda: want


def tried() -> Iterator[Check]:
    """Every configuration that `tune` times, called as it calls them: right as well as fast, and compiled by then."""
    for n, k in ((FFN, DIM), (DIM, FFN)):
        for config in variants.linears():
            yield f"variant linear {k}->{n} {variants.label(config)}", "w8a8", lambda c=config, n=n, k=k: _linear_variant(c, n, k)
    for block in variants.BLOCKS:
        for config in variants.sparse(block):
            name = f"variant sla {block[0]}x{block[1]} {variants.label(config)}"
            yield name, "int8-fp8", lambda c=config, b=block: _sla("int8-fp8", block=b, config=c)
    for config in variants.rotations():
        for emit in ("sums-64", "sums-128"):
            yield f"variant rope {emit} {variants.label(config)}", "fp32", lambda c=config, e=emit: _rotated_sums(c, e)
    for config in variants.preparations():
        yield f"variant SLA state {variants.label(config)}", "bf16", lambda c=config: _state(c)
    for precision in ("int8-fp8", "int8"):
        for config in variants.dense():
            name = f"variant attention {precision} {variants.label(config)}"
            yield name, precision, lambda p=precision, c=config: _attention(p, TOKENS, config=c)


def _rotated_sums(config: dict[str, Any], emit: str) -> Pair:
    """Sums of what RoPE wrote against the reference's sums of it."""
    from turbort_cuda.kernels import rope

    from turbort.quant.sums import block_sums, sums_rows

    angles = torch.rand(TOKENS, HEAD // 2, device=DEVICE) * 6
    given = randn(1, TOKENS, DIM), randn(DIM, dtype=torch.float32), angles.cos(), angles.sin()
    made = rope.qk_norm_rope(*given, heads=HEADS, emit=emit, config=config)
    return lambda: made.scales, lambda: block_sums(made.values.float(), sums_rows(emit))[0]


def _state(config: dict[str, Any]) -> Pair:
    from turbort_cuda.kernels import kv

    _, k, v = _clustered()

    def truth() -> Tensor:
        return (k.float().softmax(-1).transpose(1, 2).transpose(-1, -2) @ v.float().transpose(1, 2)).flatten(0, 1)

    return lambda: kv.prepare(k, v, 128, int8=True, fp8=True, linear=True, config=config).state, truth


def gluon() -> Iterator[Check]:
    """The Hopper kernel beside the Triton one at small sizes: one block, two, three, ends inside a block, several videos."""
    for precision in ("int8-fp8", "int8"):
        several = 2 if precision == "int8-fp8" else 1  # in 16 bits values of several videos must end with a block: `suits`
        for size in ((1, 64, 1), (2, 100, 128), (several, 65, 129), (2, 200, 256), (several, 333, 300), (several, 129, 515)):
            name = "gluon attention {} {}x{} to {} keys".format(precision, *size)
            yield name, "bf16", lambda p=precision, s=size: _small_attention(p, *s)
        for tokens, topk in ((700, 0.1), (1021, 0.4), (515, 1.0)):
            for early in (False, True):
                name = f"gluon sla {precision} {several}x{tokens} topk {topk}" + " early" * early
                yield name, "bf16", lambda p=precision, s=(several, tokens, topk, early): _small_sla(p, *s)


def _both(call: Callable[[dict[str, Any]], Any], **more: Any) -> Pair:
    # Said in full: what a configuration leaves out comes from the shipped one, and that may be the Gluon kernel.
    plain = {"BLOCK_M": 64, "BLOCK_N": 128, "stages": 2, "warps": 4, "tma": DEVICE == "cuda", "gluon": False, "early": False}
    return lambda: call({**plain, "gluon": True, **more}), lambda: call(plain)


def _small_attention(precision: str, batch: int, queries: int, keys: int) -> Pair:
    from turbort_cuda.kernels import attention

    q, k, v = (randn(batch, n, HEADS, HEAD) for n in (queries, keys, keys + 1))
    return _both(lambda c: attention.attention(q, k, v[:, :keys].contiguous(), precision=precision, config=c))


def _small_sla(precision: str, batch: int, tokens: int, topk: float, early: bool) -> Pair:
    from turbort_cuda.kernels import sla

    q, k, v = (randn(batch, tokens, HEADS, HEAD + n)[..., :HEAD].contiguous() for n in range(3))
    proj, bias = randn(HEAD, HEAD, scale=HEAD**-0.5), randn(HEAD, scale=0.1)
    return _both(lambda c: sla.sla_attention(q, k, v, proj, bias, topk=topk, precision=precision, config=c), early=early)


def _linear_variant(config: dict[str, Any], n: int, k: int) -> Pair:
    from turbort_cuda.kernels import linear8, quant

    weight = linear8.empty_weight(n, k, fp8=False, device=torch.device(DEVICE))
    x, bias = quant.quantize(randn(TOKENS, k), emit="int8-token"), randn(n)
    # The true product of the codes themselves: only the output's rounding is left as an error.
    full = weight.values.float() * weight.scales[:, None]
    return (
        lambda: linear8.linear(x, weight, bias, config=config),
        lambda: F.linear(x.dequantize(torch.float32), full, bias.float()),
    )
