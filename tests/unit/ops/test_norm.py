"""Norms and residuals: right at any width and mean, fused equals composed, emitted equals quantised."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.ops import gated_residual, gated_residual_norm_modulate, gelu_quant, layer_norm, norm_modulate, quantize, rms_norm
from turbort.quant import quantize as quantise

EMITS = ["int8-token", "int8-block128", "fp8-token"]
few = examples(20)


def draw(*shape, seed=0, mean=0.0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + mean


def exact_norm(x, eps=1e-6):
    x = x.double()
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()


@few
@example(2, 2, 1000.0, 547)  # 1000.112 and 1000.102: float32 rounds their mean by half a percent of their spread
@given(st.integers(1, 9), st.integers(2, 1600), st.sampled_from([0.0, 0.5, 10.0, 1000.0]), st.integers(0, 1000))
def test_layer_norm_is_right_at_any_width_and_mean(tokens, width, mean, seed):
    """Within eight float32 roundings, of which each one of the mean counts max |x| / std times."""
    x = draw(1, tokens, width, seed=seed, mean=mean)
    weight, bias = draw(width, seed=seed + 1), draw(width, seed=seed + 2)
    normed = exact_norm(x)
    condition = x.double().abs().amax(-1, keepdim=True) / (x.double().var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    roundings = (1 + condition) * (1 + normed.abs()) * weight.abs() + bias.abs()
    error = (layer_norm(x, weight, bias).double() - (normed * weight + bias)).abs()
    assert (error <= 8 * 2**-24 * roundings).all()


@pytest.mark.parametrize("width", [1536, 5120, 1000])
@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
def test_norm_modulate_is_exact_to_fp32(width, mean):
    x, scale, shift = draw(2, 3, width, mean=mean), draw(2, 1, width, seed=1), draw(2, 1, width, seed=2)
    expected = exact_norm(x) * (1 + scale.double()) + shift.double()
    y = norm_modulate(x, scale, shift).double()
    assert float((y - expected).norm() / expected.norm()) < 1e-6 * (1 + mean)


def test_a_constant_row_becomes_the_shift():
    x, shift = torch.full((1, 2, 64), 7.0), draw(1, 1, 64)
    torch.testing.assert_close(norm_modulate(x, torch.zeros(1, 1, 64), shift), shift.expand(1, 2, 64))


@few
@given(st.integers(1, 9), st.integers(1, 1600), st.integers(0, 1000))
def test_rms_norm(tokens, width, seed):
    x, weight = draw(tokens, width, seed=seed, mean=2.0), draw(width, seed=seed + 1)
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight).double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fused_op_is_the_composition(dtype):
    x, y = draw(2, 5, 64).to(dtype), draw(2, 5, 64, seed=1).to(dtype)
    gate, scale, shift = (draw(2, 1, 64, seed=s) for s in (2, 3, 4))
    x_new, h = gated_residual_norm_modulate(x, y, gate, scale, shift)
    assert torch.equal(x_new, gated_residual(x, y, gate))
    assert torch.equal(h, norm_modulate(x_new, scale, shift))
    assert torch.equal(x_new, (x.float() + y.float() * gate).to(dtype))
    assert x_new.dtype == h.dtype == dtype


def producers():
    x, y, row = draw(2, 5, 200), draw(2, 5, 200, seed=1), draw(200, seed=2)
    one = draw(2, 1, 200, seed=3)
    yield "layer_norm", lambda emit: layer_norm(x, row, row, emit=emit)
    yield "rms_norm", lambda emit: rms_norm(x, row, emit=emit)
    yield "norm_modulate", lambda emit: norm_modulate(x, one, one, emit=emit)
    yield "gated", lambda emit: gated_residual_norm_modulate(x, y, one, one, one, emit=emit)[1]
    yield "gelu_quant", lambda emit: gelu_quant(x, emit=emit)


@pytest.mark.parametrize("emit", EMITS)
@pytest.mark.parametrize(("name", "run"), list(producers()), ids=[name for name, _ in producers()])
def test_emitting_is_quantising_the_plain_output(name, run, emit):
    q, expected = run(emit), quantise(run(None), emit)
    assert q.scheme == emit
    assert torch.equal(q.scales, expected.scales)
    assert torch.equal(q.values.float(), expected.values.float())


def test_quantize_op_is_the_scheme():
    x = draw(3, 130)
    assert torch.equal(quantize(x, emit="int8-token").values, quantise(x, "int8-token").values)


def test_gelu_is_the_tanh_form():
    x = draw(3, 64, scale=3.0)
    exact = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(gelu_quant(x), exact, rtol=1e-5, atol=1e-6)


def test_norms_stay_in_fp32_under_autocast():
    x, one = draw(2, 5, 64), draw(2, 1, 64, seed=1)
    plain = norm_modulate(x, one, one)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm_modulate(x, one, one), plain)
