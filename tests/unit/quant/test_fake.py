"""Fake quantisation: the forward is the real one bit for bit, the gradient passes through."""

import pytest
import torch

from turbort.quant import SCHEMES, dequantize, fake_quant, quantize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_forward_is_bit_exact(scheme, dtype):
    x = torch.randn(33, 130, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(fake_quant(x, scheme), dequantize(quantize(x, scheme)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_passes_through(scheme):
    x = torch.randn(9, 130, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(9, 130, generator=torch.Generator().manual_seed(1))
    (fake_quant(x, scheme) * weight).sum().backward()
    assert torch.equal(x.grad, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", ["int8-token", "int4-group128"])
def test_compiles_without_a_graph_break_and_keeps_the_gradient(scheme, dtype):
    compiled = torch.compile(lambda t: fake_quant(t, scheme) * 2, backend="aot_eager", fullgraph=True)
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    y = compiled(x)
    assert torch.equal(y, dequantize(quantize(x.detach(), scheme)) * 2)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
