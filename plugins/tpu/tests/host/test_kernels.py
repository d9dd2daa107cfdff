"""Kernels against turbort's references in both ways of running Pallas on a CPU, and mistakes that must be seen."""

import jax
import jax.numpy as jnp
import pytest
import torch
from turbort_tpu.aot.inspect import Dots, dots
from turbort_tpu.bridge.convert import to_jax, to_torch
from turbort_tpu.kernels import attention as dense
from turbort_tpu.kernels import sla
from turbort_tpu.kernels.block_map import block_map
from turbort_tpu.kernels.common import pallas
from turbort_tpu.kernels.matmul import scaled_matmul
from turbort_tpu.kernels.rope import norm_rope
from turbort_tpu.kernels.rows import layer_norm_modulate

from turbort.ops import OPS
from turbort.ops.block_map import block_map as reference_map
from turbort.quant.schemes import quantize

MODES = ("interpret", "simulate")


def draw(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def nmse(got, want):
    got = to_torch(got) if isinstance(got, jax.Array) else got
    return float((got.float() - want.float()).square().sum() / want.float().square().sum())


def tokens(length, heads=1, seed=0):
    """Runs of 64 similar tokens, so that the choice of blocks is no coin toss."""
    common = draw(1, -(-length // 64), heads, 128, seed=seed, dtype=torch.float32).repeat_interleave(64, 1)[:, :length]
    return (common + 0.5 * draw(1, length, heads, 128, seed=seed + 1, dtype=torch.float32)).bfloat16()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("int8", [False, True], ids=["bf16", "int8"])
def test_attention_with_a_ragged_tail(mode, int8):
    q, k, v = (draw(1, 150, 1, 128, seed=seed) for seed in range(3))
    with pallas(mode):
        got = dense.attention(*map(to_jax, (q, k, v)), int8=int8, block=128)
    want = OPS["attention"](q, k, v, precision="int8" if int8 else None)
    assert nmse(got, want) < 5e-5


@pytest.mark.parametrize("mode", MODES)
def test_sla(mode):
    q, k, v = (tokens(330, seed=seed) for seed in (0, 10, 20))
    weight, bias = draw(128, 128, seed=3) * 0.1, draw(128, seed=4) * 0.1
    with pallas(mode):
        got = sla.sla_attention(*map(to_jax, (q, k, v, weight, bias)), topk=0.7, block=(64, 128), int8=True)
    want = OPS["sla_attention"](q, k, v, weight, bias, topk=0.7, block=(64, 128), precision="int8")
    assert nmse(got, want) < 5e-5


@pytest.mark.parametrize("mode", MODES)
def test_int8_linear_is_exact(mode):
    x = quantize(draw(1, 40, 256, dtype=torch.float32), "int8-token")
    w = quantize(draw(128, 256, seed=1, dtype=torch.float32), "int8-channel")
    with pallas(mode):
        got = scaled_matmul(*map(to_jax, (x.values, x.scales, w.values, w.scales.t())), out_dtype=jnp.float32)
    torch.testing.assert_close(to_torch(got), OPS["linear"](x, w), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_norm_and_rope(mode):
    x, scale, shift = draw(2, 21, 256), draw(2, 1, 256, seed=1, dtype=torch.float32), draw(2, 1, 256, seed=2, dtype=torch.float32)
    cos, sin = draw(21, 64, seed=3, dtype=torch.float32).cos(), draw(21, 64, seed=3, dtype=torch.float32).sin()
    with pallas(mode):
        codes, scales = layer_norm_modulate(*map(to_jax, (x, scale, shift)), eps=1e-6, emit="int8-token")
        turned = norm_rope(*map(to_jax, (x, torch.ones(256), cos, sin)), heads=2, eps=1e-6)
    want = OPS["norm_modulate"](x, scale, shift, emit="int8-token")
    assert (to_torch(codes).int() - want.values.int()).abs().max() <= 1  # a value on the edge between two codes
    torch.testing.assert_close(to_torch(scales), want.scales, rtol=1e-2, atol=0)
    assert nmse(turned.reshape(2, 21, 2, 128), OPS["qk_norm_rope"](x, torch.ones(256), cos, sin, heads=2)) < 1e-5


@pytest.mark.parametrize(("length", "topk"), [(576, 0.1), (1021, 0.25), (7, 0.1), (321, 1.0)])
def test_block_map_is_the_references(length, topk):
    q, k = tokens(length, 2, 0), tokens(length, 2, 7)
    got = to_torch(block_map(to_jax(q), to_jax(k), topk, (64, 128)))
    assert torch.equal(got, reference_map(q, k, topk, (64, 128)))


def test_a_removed_mask_is_seen(monkeypatch):
    q, k, v = (draw(1, 150, 1, 128, seed=seed) for seed in range(3))
    monkeypatch.setattr(dense, "MASKED", 0.0)
    got = dense.attention(*map(to_jax, (q, k, v)), int8=True, block=128)
    assert nmse(got, OPS["attention"](q, k, v, precision="int8")) > 1e-2


def test_wrapped_int8_sums_are_seen():
    x = quantize(draw(1, 40, 256, dtype=torch.float32), "int8-token")
    codes = jax.ShapeDtypeStruct((1, 40, 256), jnp.int8)
    weight = jax.ShapeDtypeStruct((128, 256), jnp.int8)
    right = jax.make_jaxpr(lambda a, b: scaled_matmul(a, jnp.ones((1, 40, 1)), b, jnp.ones((1, 128)), out_dtype=jnp.float32))(
        codes, weight
    )
    wrong = jax.make_jaxpr(lambda a, b: jnp.matmul(a, b.T))(codes, weight)
    assert (dots(right), dots(wrong)) == (Dots(1, 0), Dots(0, 1))
    full = x.values[0].int() @ x.values[0].int().t()
    wrapped = to_torch(jnp.matmul(to_jax(x.values[0]), to_jax(x.values[0]).T)).int()
    assert not torch.equal(full, wrapped)
