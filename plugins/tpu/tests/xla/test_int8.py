"""INT8 under torch_xla reaches a real s8 x s8 -> s32 product, and the ways in which it would not are seen."""

import re

import pytest
import torch
import torch_xla
from turbort_tpu.bridge import ops, pack
from turbort_tpu.torch_xla_executor import fallbacks, no_fallback

from turbort.errors import TurbortError
from turbort.ops import OPS
from turbort.quant.schemes import quantize

WIDE = re.compile(r"= s32\[[\d,]*\]\S* dot\(s8\[[\d,]*\]\S* \S+, s8\[[\d,]*\]")
WRAPPED = re.compile(r"= s8\[[\d,]*\]\S* dot\(s8\[")


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def codes(*shape, seed):
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def program(tensor):
    """The HLO text of the program that would compute a lazy tensor."""
    return torch_xla._XLAC._get_xla_tensors_hlo([tensor])


def test_linear_reaches_an_int8_product_with_wide_sums():
    x, w = quantize(draw(1, 40, 256), "int8-token"), quantize(draw(128, 256, seed=1), "int8-channel")
    with no_fallback("the linear"):
        got = ops.linear_int8(x.to("xla"), pack.scaled(w.to("xla")))
        text = program(got)
        values = got.cpu()
    assert WIDE.search(text)
    assert not WRAPPED.search(text)
    torch.testing.assert_close(values, OPS["linear"](x, w), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("length", [128, 150], ids=["whole", "tail"])
def test_attention_reaches_an_int8_product_with_wide_sums(length):
    q, k, v = (draw(1, length, 1, 128, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    with no_fallback("the attention"):
        got = ops.attention_int8(*(t.to("xla") for t in (q, k, v)), precision="int8")
        text = program(got)
        values = got.cpu().float()
    want = OPS["attention"](q, k, v, precision="int8").float()
    assert WIDE.search(text)
    assert not WRAPPED.search(text)
    assert float((values - want).square().sum() / want.square().sum()) < 5e-5


def test_a_wrapped_int8_product_is_seen():
    a, b = codes(64, 128, seed=0), codes(128, 32, seed=1)
    got = torch.matmul(a.to("xla"), b.to("xla"))
    assert WRAPPED.search(program(got))
    assert not torch.equal(got.cpu().int(), a.int() @ b.int())


def test_a_fallback_to_the_cpu_is_seen():
    a, b = codes(64, 128, seed=0).to("xla"), codes(128, 32, seed=1).to("xla")
    with pytest.raises(TurbortError, match="_int_mm"), no_fallback("a product"):
        torch._int_mm(a, b)
    assert "aten::_int_mm" in fallbacks()
