"""Fake-quant ops return what the integer references return, and their gradients train."""

from __future__ import annotations

import pytest
import torch

from turbort.errors import InputError
from turbort.models.config import DitConfig, Sla
from turbort.models.wan_dit import WanDit
from turbort.op import slots
from turbort.ops import attention, linear, sla_attention
from turbort.ops.linear import linear_w4a8
from turbort.precision import ATTENTION, LINEAR, PRECISIONS
from turbort.qat import bind_fake, fake_attention, fake_linear, fake_sla_attention
from turbort.quant import block_mask, fake_quant, quantize


def draw(*shape, dtype=torch.float32, seed=0, grad=False):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_(grad)


def nmse(a, b):
    return float((a.double() - b.double()).square().sum() / b.double().square().sum())


def integer(precision, x, weight, bias, **epilogue):
    packed = quantize(weight.float(), PRECISIONS[precision].weight_scheme)
    return (linear_w4a8 if precision == "w4a8" else linear)(x, packed, bias, **epilogue)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", LINEAR)
def test_a_linear_is_the_integer_kernels_linear(precision, dtype):
    """Far below the precision's own budget: only sums are added in another order, and 16-bit results rounded."""
    x, weight, bias = draw(2, 40, 200, dtype=dtype), draw(72, 200, seed=1), draw(72, seed=2)
    x[0, 3] *= 50
    got = fake_linear(x, weight, bias, precision=precision)
    want = integer(precision, x, weight, bias)
    assert got.dtype == want.dtype == dtype
    assert nmse(got, want) < (1e-12 if dtype == torch.float32 else 5e-6) < PRECISIONS[precision].max_nmse
    residual, gate = draw(2, 40, 72, dtype=dtype, seed=3), draw(2, 1, 72, seed=4)
    more = {"activation": "gelu_tanh", "residual": residual, "gate": gate}
    assert nmse(fake_linear(x, weight, bias, precision=precision, **more), integer(precision, x, weight, bias, **more)) < 5e-5


@pytest.mark.parametrize("precision", LINEAR)
def test_a_linears_gradient_is_that_of_the_rounded_product(precision):
    x, weight = draw(5, 160, grad=True), draw(24, 160, seed=1, grad=True)
    fake_linear(x, weight, precision=precision).sum().backward()
    rounded = quantize(weight.detach(), PRECISIONS[precision].weight_scheme).dequantize()
    assert torch.allclose(x.grad, rounded.sum(0).expand(5, -1), rtol=1e-5, atol=1e-4)
    assert weight.grad.abs().sum() > 0


def qkv(length=150, heads=2, d=64, dtype=torch.float32, grad=False):
    return [draw(1, length, heads, d, dtype=dtype, seed=seed, grad=grad) for seed in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ATTENTION)
def test_an_attention_is_the_integer_references(precision, dtype):
    q, k, v = qkv(dtype=dtype)
    got, want = fake_attention(q, k, v, precision=precision), attention(q, k, v, precision=precision)
    assert nmse(got.to(dtype), want) < (1e-12 if dtype == torch.float32 else 1e-5) < PRECISIONS[precision].max_nmse


@pytest.mark.parametrize("precision", ATTENTION)
def test_sla_is_the_integer_references_and_close_in_gradient(precision):
    proj, bias = draw(64, 64, seed=5), draw(64, seed=6)
    q, k, v = qkv(length=300, grad=True)
    options = {"topk": 0.4, "block": (64, 128)}
    got = fake_sla_attention(q, k, v, proj, bias, precision=precision, **options)
    with torch.no_grad():
        want = sla_attention(q, k, v, proj, bias, precision=precision, **options)
    assert nmse(got.detach(), want) < 1e-12
    got.square().sum().backward()
    assert all(torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0 for x in (q, k, v))


@pytest.mark.parametrize("precision", ATTENTION)
def test_attentions_gradient_is_near_the_float_one(precision):
    q, k, v = qkv(grad=True)
    fake_attention(q, k, v, precision=precision).square().sum().backward()
    mine = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    attention(q, k, v).square().sum().backward()
    assert all(nmse(a, x.grad) < 0.02 for a, x in zip(mine, (q, k, v), strict=True))


def test_dropped_tiles_stay_zero_and_get_no_gradient():
    weight = draw(16, 16, grad=True)
    mask = block_mask(weight, 4, 0.25)
    y = fake_quant(weight, "bsq8", tile=4, mask=mask)
    y.sum().backward()
    spread = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(weight.grad, spread.float())
    assert torch.equal(y != 0, spread)
    assert torch.equal(y, quantize(weight.detach(), "bsq8", tile=4, mask=mask).dequantize())


def test_a_model_trains_through_its_bound_sites():
    torch.manual_seed(0)
    model = WanDit(DitConfig(dim=64, ffn_dim=96, heads=1, layers=2, text_dim=16, text_len=8), Sla(0.5, (64, 128)))
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    sites = {path: "w4a8" for path, slot in slots(model).items() if slot.role.startswith(("self.", "ffn.")) and slot.op is linear}
    sites |= {f"dit/blocks.{n}.self_attn.attention": "int8" for n in range(2)}
    x, t, text = draw(1, 16, 2, 8, 8), torch.tensor([500.0]), draw(1, 8, 16, seed=1)
    wanted = draw(1, 16, 2, 8, 8, seed=2)
    plain = model(x, t, text)
    changed = bind_fake(model, {**sites, "head.head.op": "fp32"})
    assert len(changed) == 2 * 6 + 2
    assert 1e-6 < nmse(model(x, t, text).detach(), plain.detach()) < 0.1
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        loss = (model(x, t, text) - wanted).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert {slots(model)[path].provider for path in changed} == {"fake"}


def test_wrong_sites_and_precisions_are_refused():
    model = WanDit(DitConfig(dim=64, ffn_dim=96, heads=1, layers=1, text_dim=16, text_len=8))
    with pytest.raises(InputError, match=r"no call site blocks\.7"):
        bind_fake(model, {"blocks.7.ffn.0.op": "w8a8"})
    with pytest.raises(InputError, match="not computed at int8"):
        bind_fake(model, {"blocks.0.ffn.0.op": "int8"})
    with pytest.raises(InputError, match="unknown linear precision"):
        fake_linear(draw(1, 4), draw(2, 4), precision="int8")
