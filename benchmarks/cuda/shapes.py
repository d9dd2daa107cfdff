"""Every kernel against a float32 result at the workload's real shapes: error, budget, verdict. `check` runs them in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turbort_cuda import variants

from benchmarks.cuda import convolution
from benchmarks.cuda.check_worker import Row, first_line
from benchmarks.cuda.timing import DEVICE, nmse, synchronize
from benchmarks.cuda.workload import DIM, FFN, HEAD, HEADS, PIXELS, TEXT, TOKENS
from turbort.precision import PRECISIONS
from turbort.quant.qtensor import QTensor

Pair = tuple[Callable[[], Any], Callable[[], Any]]
Check = tuple[str, str, Callable[[], Pair]]
"""Name, precision whose budget holds, and what makes the kernel's call and the true one; made late, since it takes memory."""


def judged(names_: set[str]) -> Iterator[Row]:
    """One row per named check, in the order of `GROUPS`."""
    for checks in GROUPS.values():
        for name, precision, build in checks():
            if name in names_:
                yield {"kind": "shape", "name": name, **_judge(precision, build)}


def _judge(precision: str, build: Callable[[], Pair]) -> Row:
    budget = PRECISIONS[precision].max_nmse
    try:
        kernel, truth = build()
        got = kernel()
        synchronize()
        error = nmse(got.dequantize() if isinstance(got, QTensor) else got, truth())
    except Exception as failure:  # noqa: BLE001 - report every kernel, not only the first
        return {"verdict": "FAIL", "error": f"{type(failure).__name__}: {first_line(failure)}"}
    finally:
        if DEVICE == "cuda":
            _give_back()
    return {"verdict": "ok" if error <= budget else "FAIL", "nmse": error, "budget": budget}


def _give_back() -> None:
    try:
        torch.cuda.empty_cache()
    except Exception:  # noqa: BLE001 - the worker finds a broken context by itself
        return


def names(group: str) -> list[str]:
    """The names in one group; makes nothing."""
    return [name for name, _, _ in GROUPS[group]()]


def _randn(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
    draw = torch.Generator(DEVICE).manual_seed(sum(shape))
    return torch.randn(*shape, device=DEVICE, generator=draw).mul_(scale).to(dtype)


LINEAR = ("w8a8", "fp8", "w8a8-block128", "w4a8", "w4a16", "bsq8")


def _linear_shape(m: int, n: int, k: int) -> Callable[[], Iterator[Check]]:
    def checks() -> Iterator[Check]:
        for precision in LINEAR:
            for end in ("gate+residual", "gelu"):
                yield f"linear {precision} {m}x{n}x{k} {end}", precision, lambda p=precision, e=end: _linear(p, e, m, n, k)

    return checks


def _linear(precision: str, end: str, m: int, n: int, k: int) -> Pair:
    from turbort_cuda.kernels import linear8, linear_block128, linear_bsq, linear_int4

    from turbort.quant.schemes import quantize

    calls = {
        "w8a8": (linear8, linear8.linear),
        "fp8": (linear8, linear8.linear),
        "w8a8-block128": (linear_block128, linear_block128.linear),
        "w4a8": (linear_int4, linear_int4.linear_w4a8),
        "w4a16": (linear_int4, linear_int4.linear_w4a16),
        "bsq8": (linear_bsq, linear_bsq.linear),
    }
    module: Any
    linear: Any
    module, linear = calls[precision]
    x, weight, bias = _randn(m, k), _randn(n, k, dtype=torch.float32, scale=k**-0.5), _randn(n, scale=0.1)
    packed = module.pack(quantize(weight, str(PRECISIONS[precision].weight_scheme)))
    if end == "gelu":
        return (
            lambda: linear(x[None], packed, bias, activation="gelu_tanh"),
            lambda: F.gelu(F.linear(x.float(), weight, bias.float())[None], approximate="tanh"),
        )
    residual, gate = _randn(1, m, n), _randn(1, 1, n, dtype=torch.float32)
    return (
        lambda: linear(x[None], packed, bias, residual=residual, gate=gate),
        lambda: residual.float() + gate * F.linear(x.float(), weight, bias.float())[None],
    )


EMITS = {None: "bf16", "int8-token": "w8a8", "fp8-token": "fp8", "int8-block128": "w8a8-block128"}


def _passes() -> Iterator[Check]:
    for emit, budget in EMITS.items():
        yield f"norm_modulate -> {emit}", budget, lambda emit=emit: _norm(emit, gated=False)
        yield f"gated_residual_norm_modulate -> {emit}", budget, lambda emit=emit: _norm(emit, gated=True)
        yield f"gelu_quant -> {emit}", budget, lambda emit=emit: _gelu(emit)
    yield "qk_norm_rope W", "bf16", _rope
    yield "patchify W", "fp32", _patchify


def _norm(emit: str | None, *, gated: bool) -> Pair:
    from turbort_cuda.kernels import norm

    from turbort import ops

    x, y = _randn(1, TOKENS, DIM) + 0.5, _randn(1, TOKENS, DIM)
    gate, scale, shift = (_randn(1, 1, DIM, dtype=torch.float32, scale=0.3) for _ in range(3))
    if not gated:
        return (
            lambda: norm.norm_modulate(x, scale, shift, emit=emit),
            lambda: ops.norm_modulate(x.float(), scale, shift),
        )
    return (
        lambda: norm.gated_residual_norm_modulate(x, y, gate, scale, shift, emit=emit)[1],
        lambda: ops.gated_residual_norm_modulate(x.float(), y.float(), gate, scale, shift)[1],
    )


def _gelu(emit: str | None) -> Pair:
    from turbort_cuda.kernels import quant

    from turbort import ops

    h = _randn(1, min(TOKENS, 8192), FFN)
    return lambda: quant.gelu_quant(h, emit=emit), lambda: ops.gelu_quant(h.float())


def _rope() -> Pair:
    from turbort_cuda.kernels import rope

    from turbort import ops

    x, weight = _randn(1, TOKENS, DIM), _randn(DIM, dtype=torch.float32)
    angles = torch.rand(TOKENS, HEAD // 2, device=DEVICE) * 6
    return (
        lambda: rope.qk_norm_rope(x, weight, angles.cos(), angles.sin(), heads=HEADS),
        lambda: ops.qk_norm_rope(x.float(), weight, angles.cos(), angles.sin(), heads=HEADS),
    )


def _patchify() -> Pair:
    from turbort_cuda.kernels import patch

    from turbort import ops

    x = _randn(1, 16, 3, 2 * PIXELS[0] // 16, PIXELS[1] // 8)
    return lambda: patch.patchify(x), lambda: ops.patchify(x)


def _dense() -> Iterator[Check]:
    for precision in ("int8", "int8-fp8"):
        yield f"attention {precision} W", precision, lambda p=precision: _attention(p, TOKENS)
    for precision in ("int8", "int8-fp8"):
        yield f"attention {precision} W to {TEXT} keys", precision, lambda p=precision: _attention(p, TEXT)


def _attention(precision: str, keys: int, config: dict[str, Any] | None = None) -> Pair:
    from turbort_cuda.kernels import attention, sdpa

    q, k, v = (_randn(1, length + shift, HEADS, HEAD)[:, :length] for shift, length in ((0, TOKENS), (1, keys), (2, keys)))
    # 16-bit attention is far more exact than any int8 budget.
    return lambda: attention.attention(q, k, v, precision=precision, config=config), lambda: sdpa.attention(q, k, v)


def _sparse() -> Iterator[Check]:
    yield "block choice W", "fp32", _choice
    for precision in ("int8-fp8", "int8", None):
        yield f"sla_attention {precision} W topk 0.1", precision or "bf16", lambda p=precision: _sla(p)


def _clustered() -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys with something in common by runs of 64 tokens, as neighbouring pixels have."""
    runs = torch.arange(TOKENS, device=DEVICE) // 64
    common = _randn(TOKENS // 64 + 1, HEADS, HEAD)[runs][None]
    q, k, v = (common + 0.5 * _randn(1, TOKENS + shift, HEADS, HEAD)[:, :TOKENS] for shift in (0, 1, 2))
    return q, k, v


def _sla(precision: str | None, block: tuple[int, int] = (64, 128), config: dict[str, Any] | None = None) -> Pair:
    from turbort_cuda.kernels import sla

    from turbort import ops

    q, k, v = _clustered()
    proj, bias = _randn(HEAD, HEAD, scale=HEAD**-0.5), _randn(HEAD, scale=0.1)
    return (
        lambda: sla.sla_attention(q, k, v, proj, bias, topk=0.1, block=block, precision=precision, config=config),
        lambda: ops.sla_attention(q, k, v, proj, bias, topk=0.1, block=block),
    )


def _choice() -> Pair:
    from turbort_cuda.kernels import kv, sla

    from turbort.ops.block_map import block_map

    q, k, _ = _clustered()
    want = block_map(q, k, 0.1)

    def ours() -> Tensor:
        pooled = kv.finish_sums(kv.block_sums(k, 128)[0], None, TOKENS, 128, pool=True)[2]
        scores = sla.scores_of(kv.block_sums(q, 64, means=True)[0], pooled)
        return sla.choose(scores, want.shape[-1])

    return ours, lambda: want


def _video() -> Iterator[Check]:
    for channels, part in ((384, 4), (96, 1)):
        size = PIXELS[0] // part, PIXELS[1] // part
        for op in ("causal_conv3d", "vae_norm_silu", "vae_upsample"):
            yield f"{op} {channels} {size[0]}x{size[1]}", "bf16", lambda o=op, c=channels, s=size: _vae(o, c, *s)


def _vae(op: str, channels: int, height: int, width: int) -> Pair:
    from turbort_cuda.kernels import vae

    from turbort import ops

    x = _randn(1, channels, 2, height, width)
    bias, gamma = _randn(channels, scale=0.1), _randn(channels, 1, 1, 1) + 1
    weight = _randn(channels, channels, 3, 3, 3, scale=(27 * channels) ** -0.5)
    if op == "vae_norm_silu":
        return lambda: vae.vae_norm_silu(x, gamma), lambda: ops.vae_norm_silu(x.float(), gamma.float())
    if op == "vae_upsample":
        flat = weight[:, :, 0].contiguous()
        return lambda: vae.vae_upsample(x, flat, bias), lambda: ops.vae_upsample(x.float(), flat.float(), bias.float())
    return (
        lambda: vae.causal_conv3d(x, weight, bias, padding=(1, 1, 1)),
        lambda: ops.causal_conv3d(x.float(), weight.float(), bias.float(), padding=(1, 1, 1)),
    )


def _variants() -> Iterator[Check]:
    """Every configuration that `tune` times, called as it calls them: right as well as fast, and compiled by then."""
    for n, k in ((FFN, DIM), (DIM, FFN)):
        for config in variants.linears():
            yield f"variant linear {k}->{n} {variants.label(config)}", "w8a8", lambda c=config, n=n, k=k: _linear_variant(c, n, k)
    for block in variants.BLOCKS:
        for config in variants.sparse(block):
            name = f"variant sla {block[0]}x{block[1]} {variants.label(config)}"
            yield name, "int8-fp8", lambda c=config, b=block: _sla("int8-fp8", block=b, config=c)
    for precision in ("int8-fp8", "int8"):
        for config in variants.dense():
            name = f"variant attention {precision} {variants.label(config)}"
            yield name, precision, lambda p=precision, c=config: _attention(p, TOKENS, config=c)


def _gluon() -> Iterator[Check]:
    """The Hopper kernel beside the Triton one at small sizes: one block, two, three, ends inside a block, several videos."""
    for precision in ("int8-fp8", "int8"):
        for size in ((1, 64, 1), (2, 100, 128), (2, 65, 129), (1, 200, 256), (2, 333, 300), (1, 64, 700), (3, 129, 515)):
            name = "gluon attention {} {}x{} to {} keys".format(precision, *size)
            yield name, "bf16", lambda p=precision, s=size: _small_attention(p, *s)
        for tokens, topk in ((700, 0.1), (1021, 0.4), (515, 1.0)):
            for early in (False, True):
                name = f"gluon sla {precision} 2x{tokens} topk {topk}" + " early" * early
                yield name, "bf16", lambda p=precision, s=(tokens, topk, early): _small_sla(p, *s)


def _both(call: Callable[[dict[str, Any]], Any], **more: Any) -> Pair:
    plain = {"BLOCK_M": 64, "BLOCK_N": 128, "stages": 2, "warps": 4, "tma": DEVICE == "cuda"}
    return lambda: call({**plain, "gluon": True, **more}), lambda: call(plain)


def _small_attention(precision: str, batch: int, queries: int, keys: int) -> Pair:
    from turbort_cuda.kernels import attention

    q, k, v = (_randn(batch, n, HEADS, HEAD) for n in (queries, keys, keys + 1))
    return _both(lambda c: attention.attention(q, k, v[:, :keys].contiguous(), precision=precision, config=c))


def _small_sla(precision: str, tokens: int, topk: float, early: bool) -> Pair:
    from turbort_cuda.kernels import sla

    q, k, v = (_randn(2, tokens, HEADS, HEAD + n)[..., :HEAD].contiguous() for n in range(3))
    proj, bias = _randn(HEAD, HEAD, scale=HEAD**-0.5), _randn(HEAD, scale=0.1)
    return _both(lambda c: sla.sla_attention(q, k, v, proj, bias, topk=topk, precision=precision, config=c), early=early)


def _linear_variant(config: dict[str, Any], n: int, k: int) -> Pair:
    from turbort_cuda.kernels import linear8, quant

    weight = linear8.empty_weight(n, k, fp8=False, device=torch.device(DEVICE))
    x = quant.quantize(_randn(TOKENS, k), emit="int8-token")
    # The true product of the codes themselves: only the output's rounding is left as an error.
    full = weight.values.float() * weight.scales[:, None]
    return lambda: linear8.linear(x, weight, config=config), lambda: F.linear(x.dequantize(torch.float32), full)


GROUPS: dict[str, Callable[[], Iterator[Check]]] = {
    "sla": _sparse,
    "ffn.in": _linear_shape(TOKENS, FFN, DIM),
    "ffn.out": _linear_shape(TOKENS, DIM, FFN),
    "attention": _dense,
    "conv 96": partial(convolution.checks, 96),
    "variants": _variants,
    "gluon": _gluon,
    "conv 384": partial(convolution.checks, 384),
    "conv 192": partial(convolution.checks, 192),
    "conv image": partial(convolution.checks, 3),
    "passes": _passes,
    "video": _video,
    "tails": _linear_shape(min(TOKENS, 1021), 1000, 333),
    "text": _linear_shape(min(TOKENS, 512), DIM, DIM),
    "time": _linear_shape(1, DIM, 256),
}
"""Checks that share a worker."""
