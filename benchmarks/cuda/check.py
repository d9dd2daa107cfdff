"""Every kernel against a float32 result at W's real shapes: error, budget, verdict. Exit code 1 when one is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.cuda.results import Results
from benchmarks.cuda.timing import nmse
from benchmarks.cuda.workload import DIM, FFN, HEAD, HEADS, TOKENS
from turbort.precision import PRECISIONS
from turbort.quant.qtensor import QTensor

Check = tuple[str, str, Callable[[], Any], Callable[[], Any]]


def run(results: Results) -> bool:
    """True when every kernel keeps its budget."""
    good = True
    for name, precision, kernel, truth in _checks():
        try:
            got = kernel()
            torch.cuda.synchronize()
            want = truth()
        except Exception as error:  # noqa: BLE001 - report every kernel, not only the first
            good = False
            results.note(name, verdict="FAIL", error=f"{type(error).__name__}: {str(error)[:300]}")
            continue
        error = nmse(got.dequantize() if isinstance(got, QTensor) else got, want)
        budget = PRECISIONS[precision].max_nmse
        good &= error <= budget
        results.note(name, nmse=error, budget=budget, relative=error**0.5, verdict="ok" if error <= budget else "FAIL")
        torch.cuda.empty_cache()
    return good


def _randn(*shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", generator=torch.Generator("cuda").manual_seed(sum(shape))).mul_(scale).to(dtype)


def _checks() -> Iterator[Check]:
    yield from _linears()
    yield from _passes()
    yield from _attentions()
    yield from _video()


def _linears() -> Iterator[Check]:
    from turbort_cuda.kernels import linear8, linear_block128, linear_bsq, linear_int4

    from turbort.quant.schemes import quantize

    kernels = {
        "w8a8": linear8,
        "fp8": linear8,
        "w8a8-block128": linear_block128,
        "bsq8": linear_bsq,
        "w4a8": linear_int4,
        "w4a16": linear_int4,
    }
    for m, n, k in ((TOKENS, FFN, DIM), (TOKENS, DIM, FFN), (1021, 1000, 333)):
        x, weight, bias = _randn(m, k), _randn(n, k, dtype=torch.float32, scale=k**-0.5), _randn(n, scale=0.1)
        residual, gate = _randn(1, m, n), _randn(1, 1, n, dtype=torch.float32)
        for precision, module in kernels.items():
            packed = module.pack(quantize(weight, str(PRECISIONS[precision].weight_scheme)))
            function = {"w4a8": "linear_w4a8", "w4a16": "linear_w4a16"}.get(precision, "linear")
            linear = getattr(module, function)

            def kernel(
                linear: Any = linear, packed: Any = packed, x: Any = x, bias: Any = bias, r: Any = residual, g: Any = gate
            ) -> Any:
                return linear(x[None], packed, bias, residual=r, gate=g)

            def truth(x: Any = x, w: Any = weight, bias: Any = bias, r: Any = residual, g: Any = gate) -> Any:
                return r.float() + g * F.linear(x.float(), w, bias.float())[None]

            yield f"linear {precision} {m}x{n}x{k} gate+residual", precision, kernel, truth


def _passes() -> Iterator[Check]:
    from turbort_cuda.kernels import norm, quant, rope

    from turbort import ops

    x, y = _randn(1, TOKENS, DIM) + 0.5, _randn(1, TOKENS, DIM)
    gate, scale, shift = (_randn(1, 1, DIM, dtype=torch.float32, scale=0.3) for _ in range(3))
    wide = x.float()
    for emit in (None, "int8-token", "fp8-token", "int8-block128"):
        budget = {None: "bf16", "int8-token": "w8a8", "fp8-token": "fp8", "int8-block128": "w8a8-block128"}[emit]
        yield (
            f"norm_modulate -> {emit}",
            budget,
            lambda emit=emit: norm.norm_modulate(x, scale, shift, emit=emit),
            lambda: ops.norm_modulate(wide, scale, shift),
        )
        yield (
            f"gated_residual_norm_modulate -> {emit}",
            budget,
            lambda emit=emit: norm.gated_residual_norm_modulate(x, y, gate, scale, shift, emit=emit)[1],
            lambda: ops.gated_residual_norm_modulate(wide, y.float(), gate, scale, shift)[1],
        )
        h = _randn(1, 8192, FFN)
        yield (
            f"gelu_quant -> {emit}",
            budget,
            lambda emit=emit, h=h: quant.gelu_quant(h, emit=emit),
            lambda h=h: ops.gelu_quant(h.float()),
        )
    angles = torch.rand(TOKENS, HEAD // 2, device="cuda") * 6
    weight = _randn(DIM, dtype=torch.float32)
    yield (
        "qk_norm_rope",
        "bf16",
        lambda: rope.qk_norm_rope(x, weight, angles.cos(), angles.sin(), heads=HEADS),
        lambda: ops.qk_norm_rope(wide, weight, angles.cos(), angles.sin(), heads=HEADS),
    )


def _attentions() -> Iterator[Check]:
    from turbort_cuda.kernels import attention, sdpa, sla

    from turbort import ops

    q, k, v = (_randn(1, TOKENS + shift, HEADS, HEAD)[:, :TOKENS].contiguous() for shift in (0, 1, 2))
    # Half of the heads are truth enough, and cuDNN's bf16 is far more exact than any int8 budget.
    for precision in ("int8", "int8-fp8"):
        yield (
            f"attention {precision} W",
            precision,
            lambda p=precision: attention.attention(q, k, v, precision=p),
            lambda: sdpa.attention(q, k, v),
        )
    runs = torch.arange(TOKENS, device="cuda") // 64
    common = _randn(TOKENS // 64 + 1, HEADS, HEAD)[runs][None]
    sq, sk, sv = (common + 0.5 * t for t in (q, k, v))
    proj, bias = _randn(HEAD, HEAD, scale=HEAD**-0.5), _randn(HEAD, scale=0.1)
    for precision in (None, "int8", "int8-fp8"):
        yield (
            f"sla_attention {precision} W topk 0.1",
            precision or "bf16",
            lambda p=precision: sla.sla_attention(sq, sk, sv, proj, bias, topk=0.1, precision=p),
            lambda: ops.sla_attention(sq, sk, sv, proj, bias, topk=0.1),
        )


def _video() -> Iterator[Check]:
    from turbort_cuda.kernels import vae

    from turbort import ops

    for channels, height, width in ((384, 120, 208), (96, 480, 832)):
        x = _randn(1, channels, 2, height, width)
        weight, bias = _randn(channels, channels, 3, 3, 3, scale=(27 * channels) ** -0.5), _randn(channels, scale=0.1)
        flat, gamma = weight[:, :, 0].contiguous(), _randn(channels, 1, 1, 1) + 1
        yield (
            f"causal_conv3d {channels} {height}x{width}",
            "bf16",
            lambda x=x, w=weight, b=bias: vae.causal_conv3d(x, w, b, padding=(1, 1, 1)),
            lambda x=x, w=weight, b=bias: ops.causal_conv3d(x.float(), w.float(), b.float(), padding=(1, 1, 1)),
        )
        yield (
            f"vae_norm_silu {channels} {height}x{width}",
            "bf16",
            lambda x=x, g=gamma: vae.vae_norm_silu(x, g),
            lambda x=x, g=gamma: ops.vae_norm_silu(x.float(), g.float()),
        )
        yield (
            f"vae_upsample {channels} {height}x{width}",
            "bf16",
            lambda x=x, w=flat, b=bias: vae.vae_upsample(x, w, b),
            lambda x=x, w=flat, b=bias: ops.vae_upsample(x.float(), w.float(), b.float()),
        )
