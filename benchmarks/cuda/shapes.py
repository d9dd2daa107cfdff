"""Every kernel against a float32 result at the workload's real shapes: error, budget, verdict. `check` runs them in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.cuda import attention_checks, convolution, linear_variants
from benchmarks.cuda.check_inputs import Check, Pair, randn
from benchmarks.cuda.check_worker import Row, first_line
from benchmarks.cuda.timing import DEVICE, nmse, synchronize
from benchmarks.cuda.workload import DIM, FFN, HEAD, HEADS, PIXELS, TOKENS
from turbort.precision import PRECISIONS
from turbort.quant.qtensor import QTensor


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
    x, weight, bias = randn(m, k), randn(n, k, dtype=torch.float32, scale=k**-0.5), randn(n, scale=0.1)
    packed = module.pack(quantize(weight, str(PRECISIONS[precision].weight_scheme)))
    if end == "gelu":
        return (
            lambda: linear(x[None], packed, bias, activation="gelu_tanh"),
            lambda: F.gelu(F.linear(x.float(), weight, bias.float())[None], approximate="tanh"),
        )
    residual, gate = randn(1, m, n), randn(1, 1, n, dtype=torch.float32)
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

    x, y = randn(1, TOKENS, DIM) + 0.5, randn(1, TOKENS, DIM)
    gate, scale, shift = (randn(1, 1, DIM, dtype=torch.float32, scale=0.3) for _ in range(3))
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

    h = randn(1, min(TOKENS, 8192), FFN)
    return lambda: quant.gelu_quant(h, emit=emit), lambda: ops.gelu_quant(h.float())


def _rope() -> Pair:
    from turbort_cuda.kernels import rope

    from turbort import ops

    x, weight = randn(1, TOKENS, DIM), randn(DIM, dtype=torch.float32)
    angles = torch.rand(TOKENS, HEAD // 2, device=DEVICE) * 6
    return (
        lambda: rope.qk_norm_rope(x, weight, angles.cos(), angles.sin(), heads=HEADS),
        lambda: ops.qk_norm_rope(x.float(), weight, angles.cos(), angles.sin(), heads=HEADS),
    )


def _patchify() -> Pair:
    from turbort_cuda.kernels import patch

    from turbort import ops

    x = randn(1, 16, 3, 2 * PIXELS[0] // 16, PIXELS[1] // 8)
    return lambda: patch.patchify(x), lambda: ops.patchify(x)


def _video() -> Iterator[Check]:
    for channels, part in ((384, 4), (96, 1)):
        size = PIXELS[0] // part, PIXELS[1] // part
        for op in ("causal_conv3d", "vae_norm_silu", "vae_upsample"):
            yield f"{op} {channels} {size[0]}x{size[1]}", "bf16", lambda o=op, c=channels, s=size: _vae(o, c, *s)


def _vae(op: str, channels: int, height: int, width: int) -> Pair:
    from turbort_cuda.kernels import vae

    from turbort import ops

    x = randn(1, channels, 2, height, width)
    bias, gamma = randn(channels, scale=0.1), randn(channels, 1, 1, 1) + 1
    weight = randn(channels, channels, 3, 3, 3, scale=(27 * channels) ** -0.5)
    if op == "vae_norm_silu":
        return lambda: vae.vae_norm_silu(x, gamma), lambda: ops.vae_norm_silu(x.float(), gamma.float())
    if op == "vae_upsample":
        flat = weight[:, :, 0].contiguous()
        return lambda: vae.vae_upsample(x, flat, bias), lambda: ops.vae_upsample(x.float(), flat.float(), bias.float())
    return (
        lambda: vae.causal_conv3d(x, weight, bias, padding=(1, 1, 1)),
        lambda: ops.causal_conv3d(x.float(), weight.float(), bias.float(), padding=(1, 1, 1)),
    )


GROUPS: dict[str, Callable[[], Iterator[Check]]] = {
    "sla": attention_checks.sparse,
    "ffn.in": _linear_shape(TOKENS, FFN, DIM),
    "ffn.out": _linear_shape(TOKENS, DIM, FFN),
    "attention": attention_checks.dense,
    "conv 96": partial(convolution.checks, 96),
    "variants": attention_checks.tried,
    "gluon": attention_checks.gluon,
    "conv 384": partial(convolution.checks, 384),
    "conv 192": partial(convolution.checks, 192),
    "conv image": partial(convolution.checks, 3),
    "passes": _passes,
    "video": _video,
    "tails": _linear_shape(min(TOKENS, 1021), 1000, 333),
    "text": _linear_shape(min(TOKENS, 512), DIM, DIM),
    "time": _linear_shape(1, DIM, 256),
    "linear ends": linear_variants.checks,
}
"""Checks that share a worker."""
