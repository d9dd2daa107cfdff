"""The references on an NVIDIA device: exact integer products, the same codes and blocks as the CPU, bounded memory."""

import pytest
import torch

from turbort.ops import OPS, block_map, linear, sla_attention
from turbort.quant import SCHEMES, dequantize, fake_quant, quantize
from turbort.quant.intmm import int_matmul

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("size", [(1, 1, 1), (7, 333, 77), (33, 13824, 5), (257, 1536, 264)])
def test_int_products_are_exact(size):
    m, k, n = size
    a, b = (torch.randint(-128, 128, (rows, k), dtype=torch.int8) for rows in (m, n))
    expected = (a.to(torch.int64) @ b.to(torch.int64).t()).to(torch.int32)
    assert torch.equal(int_matmul(a.cuda(), b.cuda()).cpu(), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_are_those_of_the_cpu(scheme):
    x = draw(130, 300)
    here, there = quantize(x, scheme), quantize(x.cuda(), scheme)
    assert torch.equal(here.scales, there.scales.cpu())
    assert torch.equal(here.values.float(), there.values.float().cpu())


@pytest.mark.parametrize("scheme", ["int8-channel", "int8-block128", "fp8-channel", "int4-group128", "bsq8", "bsq4"])
def test_linears_agree_with_the_cpu(scheme):
    x, w, b = draw(2, 65, 300), draw(77, 300, seed=1) / 17, draw(77, seed=2)
    here = linear(x, quantize(w, scheme), b)
    there = linear(x.cuda(), quantize(w.cuda(), scheme), b.cuda()).cpu()
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_quant_trains_when_compiled(dtype, backend):
    compiled = torch.compile(lambda t: fake_quant(t, "int8-token"), backend=backend, fullgraph=True)
    x = draw(64, 256).to("cuda", dtype).requires_grad_()
    y = compiled(x)
    expected = dequantize(quantize(x.detach(), "int8-token")).float()
    step = x.detach().float().abs().amax(-1, keepdim=True) / 127
    assert ((y.detach().float() - expected).abs() <= step * 1.01).all()  # a fused division may round a tie the other way
    assert (y.detach().float() == expected).float().mean() > 0.99
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_block_map_is_that_of_the_cpu():
    q, k = draw(1, 4000, 4, 128, dtype=torch.bfloat16), draw(1, 4000, 4, 128, seed=1, dtype=torch.bfloat16)
    same = block_map(q, k, 0.2) == block_map(q.cuda(), k.cuda(), 0.2).cpu()
    assert same.all(-1).float().mean() > 0.99


@pytest.mark.parametrize("precision", [None, "int8", "int8-fp8"])
def test_sla_runs_at_full_length_in_bounded_memory(precision):
    q, k, v = (torch.randn(1, 32760, 12, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    weight, bias = torch.eye(128, device="cuda", dtype=torch.bfloat16), torch.zeros(128, device="cuda", dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = sla_attention(q, k, v, weight, bias, topk=0.1, precision=precision)
    assert y.isfinite().all()
    assert torch.cuda.max_memory_allocated() - before < 8 << 30


def test_int8_attention_runs_at_full_length_in_bounded_memory():
    q, k, v = (torch.randn(1, 32760, 12, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert OPS["attention"](q, k, v, precision="int8").isfinite().all()
    assert torch.cuda.max_memory_allocated() - before < 8 << 30


def test_sla_trains():
    q, k, v = (torch.randn(2, 576, 2, 128, device="cuda", requires_grad=True) for _ in range(3))
    weight, bias = torch.randn(128, 128, device="cuda", requires_grad=True), torch.zeros(128, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = sla_attention(q, k, v, weight, bias, topk=0.25)
    y.float().square().sum().backward()
    assert all(t.grad.isfinite().all() and t.grad.abs().sum() > 0 for t in (q, k, v, weight, bias))
