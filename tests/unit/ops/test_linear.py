"""`linear` at every precision against integer arithmetic or fp64, and its epilogues against their parts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.errors import InputError
from turbort.ops import linear
from turbort.ops.linear import linear_w4a8
from turbort.quant import quantize

few = examples(15)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40))
seeds = st.integers(0, 2**31)


def draw(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def integer(a, b):
    return (a.to(torch.int64) @ b.to(torch.int64).t()).to(torch.float32)


@few
@given(sizes, seeds)
def test_w8a8_is_bit_exact(size, seed):
    m, k, n = size
    x, w = quantize(draw(m, k, seed=seed), "int8-token"), quantize(draw(n, k, seed=seed + 1), "int8-channel")
    expected = integer(x.values, w.values) * w.scales.t() * x.scales
    assert torch.equal(linear(x, w), expected)


@few
@given(st.integers(1, 9), st.integers(1, 300), st.integers(1, 9), seeds)
def test_block128_is_bit_exact_against_a_loop_over_outputs(m, k, n, seed):
    x, w = quantize(draw(m, k, seed=seed), "int8-block128"), quantize(draw(n, k, seed=seed + 1), "int8-block128")
    y = torch.zeros(m, n)
    for t in range(-(-k // 128)):
        span = slice(t * 128, (t + 1) * 128)
        for i in range(m):
            for j in range(n):
                whole = (x.values[i, span].to(torch.int64) * w.values[j, span].to(torch.int64)).sum().float()
                y[i, j] += whole * (x.scales[0, t] * w.scales[0, t])
    assert torch.equal(linear(x, w), y)


def test_block128_over_row_and_column_blocks():
    x, w = quantize(draw(300, 200), "int8-block128"), quantize(draw(260, 200, seed=1), "int8-block128")
    exact = x.dequantize().double() @ w.dequantize().double().t()
    assert ((linear(x, w) - exact).norm() / exact.norm()) < 1e-6


def test_block128_casts_before_it_adds_the_bias():
    x = draw(3, 256).bfloat16()
    w = quantize(draw(5, 256, seed=1), "int8-block128")
    bias = draw(5, seed=2)
    assert torch.equal(linear(x, w, bias), linear(x, w) + bias.bfloat16())


@few
@given(sizes, seeds)
def test_w4a8_is_bit_exact_per_group(size, seed):
    m, k, n = size
    x, w = quantize(draw(m, k, seed=seed), "int8-token"), quantize(draw(n, k, seed=seed + 1), "int4-group128")
    y = torch.zeros(m, n)
    for g in range(w.scales.shape[1]):
        span = slice(g * 128, (g + 1) * 128)
        y += integer(x.values[:, span], w.values[:, span]) * w.scales[:, g]
    assert torch.equal(linear(x, w), y * x.scales)
    assert torch.equal(linear_w4a8(x, w), linear(x, w))


def test_w4a8_quantises_a_float_input_and_plain_linear_does_not():
    x, w = draw(4, 256), quantize(draw(8, 256, seed=1), "int4-group128")
    assert torch.equal(linear_w4a8(x, w), linear(quantize(x, "int8-token"), w))
    assert torch.equal(linear(x, w), F.linear(x, w.dequantize()))


@pytest.mark.parametrize("scheme", ["fp8-channel", "bsq8", "bsq4"])
def test_other_schemes_multiply_what_their_tensors_stand_for(scheme):
    activation = "fp8-token" if scheme == "fp8-channel" else "int8-token"
    x, w = quantize(draw(33, 300), activation), quantize(draw(21, 300, seed=1), scheme)
    exact = x.dequantize().double() @ w.dequantize().double().t()
    assert ((linear(x, w) - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("scheme", ["int8-channel", "int8-block128", "fp8-channel", "bsq8", "bsq4"])
def test_a_float_input_is_quantised_by_the_rule_of_the_weight(scheme):
    activation = {"int8-block128": "int8-block128", "fp8-channel": "fp8-token"}.get(scheme, "int8-token")
    x, w = draw(2, 9, 136), quantize(draw(24, 136, seed=1), scheme)
    y = linear(x, w)
    assert y.shape == (2, 9, 24)
    assert torch.equal(y, linear(quantize(x, activation), w))


WEIGHTS = [None, "int8-channel", "int8-block128", "fp8-channel", "int4-group128", "bsq8", "bsq4"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", WEIGHTS)
def test_epilogues_are_the_composition_of_their_parts(scheme, dtype):
    x = draw(2, 5, 256).to(dtype)
    w = draw(16, 256, seed=1, scale=1 / 16).to(dtype)
    weight = w if scheme is None else quantize(w, scheme)
    bias = draw(16, seed=2).to(dtype)
    residual, gate = draw(2, 5, 16, seed=3).to(dtype), draw(2, 1, 16, seed=4)
    y = linear(x, weight, bias)
    assert y.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]

    def close(a, b):
        torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance)

    close(linear(x, weight, bias, activation="gelu_tanh"), F.gelu(y.float(), approximate="tanh"))
    close(linear(x, weight, bias, residual=residual), residual.float() + y.float())
    close(linear(x, weight, bias, residual=residual, gate=gate), residual.float() + gate * y.float())
    wide = linear(x, weight, bias, residual=residual.float(), gate=gate.expand(2, 5, 16))
    assert wide.dtype == torch.float32
    close(wide, residual.float() + gate * y.float())


@pytest.mark.parametrize("scheme", WEIGHTS)
def test_meta_agrees_with_cpu_about_form(scheme):
    x, w = draw(2, 5, 130).bfloat16(), draw(16, 130, seed=1)
    weight = w if scheme is None else quantize(w, scheme)
    y = linear(x.to("meta"), weight.to("meta"), torch.zeros(16, device="meta"), activation="gelu_tanh")
    assert y.is_meta
    assert (y.shape, y.dtype) == ((2, 5, 16), torch.bfloat16)


def test_float_parameters_are_cast_to_the_input():
    x, w, b = draw(3, 8).bfloat16(), draw(4, 8, seed=1), draw(4, seed=2)
    assert torch.equal(linear(x, w, b), F.linear(x, w.bfloat16(), b.bfloat16()))


def test_autocast_leaves_the_quantised_sums_exact():
    x, w = quantize(draw(9, 2000), "fp8-token"), quantize(draw(5, 2000, seed=1), "fp8-channel")
    plain = linear(x, w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear(x, w), plain)


def test_gradients_reach_input_and_weight():
    x, w = draw(3, 8).requires_grad_(), draw(4, 8, seed=1).requires_grad_()
    linear(x, w, residual=torch.zeros(3, 4), gate=torch.full((1, 4), 2.0)).sum().backward()
    assert torch.allclose(x.grad, 2 * w.detach().sum(0).expand(3, 8))
    assert torch.allclose(w.grad, 2 * x.detach().sum(0).expand(4, 8))


def test_activations_of_the_wrong_scheme_are_refused():
    with pytest.raises(InputError, match="needs int8-token activations, not fp8-token"):
        linear(quantize(draw(2, 8), "fp8-token"), quantize(draw(4, 8), "int8-channel"))


def test_an_unknown_activation_is_refused():
    with pytest.raises(InputError, match="'relu'"):
        linear(draw(2, 8), draw(4, 8), activation="relu")
