"""Every kernel on XLA:CPU against turbort's references, in both ways that Pallas runs without a TPU.

`interpret` runs a kernel's body as plain XLA ops; `simulate` is JAX's TPU simulator, with its memories and copies. Inputs are
small and ragged on purpose: one block and a tail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor

from turbort.ops import OPS
from turbort.ops.block_map import block_map as reference_map
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize
from turbort_tpu.bridge.convert import to_jax, to_torch
from turbort_tpu.kernels import attention, block_map, common, matmul, rope, rows, sla

MODES = ("interpret", "simulate")
PLACE = "XLA:CPU"


@dataclass(frozen=True)
class Numeric:
    """One kernel on one input.

    Attributes:
        limit: the largest normalised mean square error against the reference at the same precision.
        kernel: the kernel, a function of `arrays` that returns one or two arrays.
        arrays: torch tensors that it is given as arrays.
        reference: what it must return.
    """

    name: str
    limit: float
    kernel: Callable[..., Any]
    arrays: tuple[Tensor, ...]
    reference: Callable[[], Any]


def numeric_rows(only: str = "") -> Iterator[Mapping[str, Any]]:
    """A row as `check_targets` yields them for every kernel and mode; `only` is part of the names wanted."""
    for case in numerics():
        for mode in MODES:
            if only in (name := f"{case.name} ({mode})"):
                yield _row(name, case, mode)


def _row(name: str, case: Numeric, mode: str) -> Mapping[str, Any]:
    started = time.perf_counter()
    try:
        with common.pallas(mode):
            # A function of its own per mode: JAX keeps traces by function and knows nothing of the mode.
            run = jax.jit(lambda *arrays: case.kernel(*arrays))
            made = [to_torch(array) for array in jax.tree.leaves(run(*map(to_jax, case.arrays)))]
        found = max(error(got, want) for got, want in zip(made, _tensors(case.reference()), strict=True))
        good, detail = found <= case.limit, f"nmse {found:.1e}, at most {case.limit:.0e}"
    except Exception as problem:  # noqa: BLE001 - whatever a kernel raises is a failed row
        good, detail = False, f"{type(problem).__name__}: {str(problem)[:160]}"
    seconds = round(time.perf_counter() - started, 2)
    sizes = {"peak_hbm": None, "peak_vmem": None, "dots": None}
    return {"target": PLACE, "case": name, "ok": good, "detail": detail, "seconds": seconds, **sizes}


def error(got: Tensor, want: Tensor) -> float:
    """Normalised mean square error, infinite where a value is not finite."""
    difference = float((got.float() - want.float()).square().sum() / want.float().square().sum().clamp_min(1e-30))
    return difference if difference == difference else float("inf")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal values, the same everywhere."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tokens(length: int, heads: int = 1, seed: int = 0) -> Tensor:
    """[1, length, heads, 128] in runs of 64 similar tokens, so that the choice of blocks is no coin toss."""
    common_part = draw(1, -(-length // 64), heads, 128, seed=seed, dtype=torch.float32).repeat_interleave(64, 1)[:, :length]
    return (common_part + 0.5 * draw(1, length, heads, 128, seed=seed + 1, dtype=torch.float32)).bfloat16()


def numerics() -> Iterator[Numeric]:
    """All cases. Kernels are looked up when they run, so that a test can replace them."""
    yield _attention("bf16")
    yield _attention("int8")
    yield _sla()
    q, k = tokens(330), tokens(330, seed=10)
    yield Numeric(
        "block map", 0.0,
        lambda q, k: block_map.block_map(q, k, 0.7, (64, 128)), (q, k),
        lambda: reference_map(q, k, 0.7, (64, 128)),
    )  # fmt: skip
    yield _linear("int8", 1e-7)
    yield _linear("fp8", 1e-5)
    yield from _rows()
    yield _rope()


def _attention(precision: str) -> Numeric:
    given = tuple(draw(1, 150, 1, 128, seed=seed) for seed in range(3))
    return Numeric(
        f"attention {precision}, ragged tail", 5e-5,
        lambda *a: attention.attention(*a, int8=precision == "int8", block=128), given,
        lambda: OPS["attention"](*given, precision=None if precision == "bf16" else precision),
    )  # fmt: skip


def _sla() -> Numeric:
    """Its bf16 form differs by one product and is left to the conformance suite."""
    given = *(tokens(330, seed=seed) for seed in (0, 10, 20)), draw(128, 128, seed=3) * 0.1, draw(128, seed=4) * 0.1
    shape: dict[str, Any] = {"topk": 0.7, "block": (64, 128)}
    return Numeric(
        "sla int8, ragged tail", 5e-5,
        lambda *a: sla.sla_attention(*a, int8=True, **shape), given,
        lambda: OPS["sla_attention"](*given, precision="int8", **shape),
    )  # fmt: skip


def _linear(precision: str, limit: float) -> Numeric:
    x = quantize(draw(1, 40, 2304, dtype=torch.float32), f"{precision}-token")
    w = quantize(draw(256, 2304, seed=1, dtype=torch.float32), f"{precision}-channel")
    bias, residual, gate = draw(256, seed=2), draw(1, 40, 256, seed=3), draw(1, 1, 256, seed=4, dtype=torch.float32)
    return Numeric(
        f"linear {precision} with bias, gate and residual", limit,
        lambda *a: matmul.scaled_matmul(*a, out_dtype=jnp.float32),
        (x.values, x.scales, w.values, w.scales.reshape(1, -1), bias, residual, gate),
        lambda: OPS["linear"](x, w, bias.float(), residual=residual.float(), gate=gate),
    )  # fmt: skip


def _rows() -> Iterator[Numeric]:
    x, y = draw(2, 21, 256), draw(2, 21, 256, seed=3)
    scale, shift, gate = (draw(2, 1, 256, seed=seed, dtype=torch.float32) for seed in (1, 2, 4))
    emit = "int8-token"
    yield Numeric(
        "norm modulate to int8", 2e-4,
        lambda *a: _decoded(rows.layer_norm_modulate(*a, eps=1e-6, emit=emit)), (x, scale, shift),
        lambda: OPS["norm_modulate"](x, scale, shift, emit=emit).dequantize(torch.float32),
    )  # fmt: skip
    yield Numeric(
        "gated residual and norm", 2e-5,
        lambda *a: rows.gated_residual_norm_modulate(*a, eps=1e-6), (x, y, gate, scale, shift),
        lambda: OPS["gated_residual_norm_modulate"](x, y, gate, scale, shift),
    )  # fmt: skip
    yield Numeric(
        "gelu to int8", 2e-4,
        lambda x: _decoded(rows.gelu(x, emit=emit)), (x,),
        lambda: OPS["gelu_quant"](x, emit=emit).dequantize(torch.float32),
    )  # fmt: skip


def _rope() -> Numeric:
    angles = draw(21, 64, seed=3, dtype=torch.float32)
    given = draw(2, 21, 256), draw(256, seed=1, dtype=torch.float32) * 0.1 + 1, angles.cos(), angles.sin()
    return Numeric(
        "norm rope", 1e-5,
        lambda *a: rope.norm_rope(*a, heads=2, eps=1e-6).reshape(2, 21, 2, 128), given,
        lambda: OPS["qk_norm_rope"](*given, heads=2),
    )  # fmt: skip


def _decoded(made: Any) -> Any:
    codes, scales = made
    return codes.astype(jnp.float32) * scales


def _tensors(found: Any) -> list[Tensor]:
    parts = found if isinstance(found, tuple) else (found,)
    return [part.dequantize(torch.float32) if isinstance(part, QTensor) else part for part in parts]
