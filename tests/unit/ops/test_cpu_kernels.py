"""CPU kernels against the references, at sizes that conformance does not reach."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.errors import InputError
from turbort.ops import cpu, linear, vae_upsample
from turbort.ops.cpu import linear_float, linear_int8, pack_float, pack_int8
from turbort.ops.upsample_phases import phase_weights
from turbort.ops.upsample_phases import vae_upsample as by_phases
from turbort.quant import quantize
from turbort.quant.cpuinfo import has_bf16, has_vnni

few = examples(15)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40))
vnni = pytest.mark.skipif(not has_vnni(), reason="this CPU has no int8 dot product")
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not has_bf16(), reason="no bfloat16 here"))]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def epilogues(m, n):
    residual, gate = draw(1, m, n, seed=5), draw(1, 1, n, seed=6)
    yield {}
    yield {"activation": "gelu_tanh"}
    yield {"residual": residual}
    yield {"residual": residual, "gate": gate}


@vnni
@few
@given(sizes, st.booleans(), st.integers(0, 1000))
def test_int8_linear_is_the_reference(size, with_bias, seed):
    m, k, n = size
    x, bias = draw(1, m, k, seed=seed), draw(n, seed=seed + 1) if with_bias else None
    weight = quantize(draw(n, k, seed=seed + 2), "int8-channel")
    packed = pack_int8(weight)
    for extra in epilogues(m, n):
        expected = linear(x, weight, bias, **extra)
        torch.testing.assert_close(linear_int8(x, packed, bias, **extra), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(linear_int8(quantize(x, "int8-token"), packed, bias, **extra), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@few
@given(sizes, st.booleans(), st.integers(0, 1000))
def test_float_linear_is_the_reference(dtype, size, with_bias, seed):
    m, k, n = size
    x, bias = draw(1, m, k, seed=seed).to(dtype), draw(n, seed=seed + 1) if with_bias else None
    weight = (draw(n, k, seed=seed + 2) / k**0.5).to(dtype)
    packed = pack_float(weight)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for extra in epilogues(m, n):
        expected = linear(x, weight, bias, **extra)
        y = linear_float(x, packed, bias, **extra)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


@vnni
def test_int8_extremes_do_not_saturate():
    k = 4096
    x = quantize(torch.ones(2, k), "int8-token")
    weight = quantize(torch.ones(3, k) * torch.tensor([[1.0], [-1.0], [0.5]]), "int8-channel")
    assert torch.equal(linear_int8(x, pack_int8(weight)), linear(x, weight))


def test_quantising_in_parts_changes_no_bit(monkeypatch):
    x = draw(2, 37, 50).bfloat16()
    whole = quantize(x, "int8-token")
    monkeypatch.setattr(cpu, "CACHED_ELEMENTS", 50 * 4)
    parts = cpu.quantize_tokens(x)
    assert torch.equal(parts.values, whole.values)
    assert torch.equal(parts.scales, whole.scales)
    assert parts.dtype == whole.dtype


def test_packs_refuse_other_schemes():
    with pytest.raises(InputError, match="int8-channel"):
        pack_int8(quantize(draw(4, 8), "fp8-channel"))


@vnni
def test_int8_linear_refuses_other_activations():
    packed = pack_int8(quantize(draw(4, 8), "int8-channel"))
    with pytest.raises(InputError, match="int8-token"):
        linear_int8(quantize(draw(2, 8), "fp8-token"), packed)
    with pytest.raises(InputError, match="relu"):
        linear_int8(draw(2, 8), packed, activation="relu")


@few
@given(
    st.integers(1, 2), st.integers(1, 9), st.integers(1, 3), st.tuples(st.integers(1, 7), st.integers(1, 7)), st.integers(1, 9)
)
def test_upsampling_by_phases_is_the_reference(batch, channels, frames, size, outputs):
    x, weight, bias = draw(batch, channels, frames, *size), draw(outputs, channels, 3, 3, seed=1), draw(outputs, seed=2)
    torch.testing.assert_close(by_phases(x, weight, bias), vae_upsample(x, weight, bias), rtol=1e-4, atol=1e-4)


def test_phase_weights_share_out_all_taps():
    weight = draw(3, 2, 3, 3)
    torch.testing.assert_close(phase_weights(weight).sum((-1, -2)), weight.sum((-1, -2)).expand(2, 2, 3, 2))
