"""Dense attention against fp64, and the INT8 forms against their rule written out naively."""

import importlib

import pytest
import torch

from turbort.errors import InputError
from turbort.ops import attention, attention_int8, sla_attention

attention_module = importlib.import_module("turbort.ops.attention")  # the package's attribute of that name is the op


def draw(batch, lq, lk, heads, d=32, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, length, heads, d, generator=generator).to(dtype) for length in (lq, lk, lk))


def exact(q, k, v):
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / q.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.double())


def error(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
@pytest.mark.parametrize(("lq", "lk"), [(1, 1), (65, 65), (257, 33)])
def test_dense_attention_is_exact_to_its_dtype(lq, lk, dtype, limit):
    q, k, v = draw(2, lq, lk, 3, dtype=dtype)
    y = attention(q, k, v)
    assert y.dtype == dtype
    assert y.shape == q.shape
    assert error(y, exact(q, k, v)) < limit


def test_query_chunks_change_nothing(monkeypatch):
    q, k, v = draw(2, 70, 50, 3)
    whole = attention(q, k, v)
    monkeypatch.setattr(attention_module, "FUSED_SDPA", frozenset())
    monkeypatch.setattr(attention_module, "SCORE_BUDGET", 2 * 3 * 50 * 16)
    torch.testing.assert_close(attention(q, k, v), whole)


def naive_int8(q, k, v, fp8):
    """One head at a time, one block of rows at a time, as the rule is stated."""
    out = torch.zeros(q.shape, dtype=torch.float32)
    k = k.float() - k.float().mean(1, keepdim=True)

    def rows(x, size):
        codes, scales = torch.zeros_like(x), torch.zeros(x.shape[0], 1)
        for start in range(0, x.shape[0], size):
            part = x[start : start + size]
            scale = part.abs().max() / 127
            codes[start : start + size] = (part / scale).round()
            scales[start : start + size] = scale
        return codes, scales

    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            qc, qs = rows(q[b, :, h].float(), 128)
            kc, ks = rows(k[b, :, h], 64)
            value = v[b, :, h].float()
            if fp8:
                scale = value.abs().amax(0) / 448
                value = (value / scale).to(torch.float8_e4m3fn).float() * scale
            scores = (qc.long() @ kc.long().t()).float() * (qs * ks.t()) / q.shape[-1] ** 0.5
            p = (scores - scores.amax(1, keepdim=True)).exp()
            total = p.sum(1, keepdim=True)
            if fp8:
                p = (p * 448).to(torch.float8_e4m3fn).float() / 448
            elif q.dtype != torch.float32:
                p = p.to(q.dtype).float()
            out[b, :, h] = p @ value / total
    return out.to(q.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("precision", ["int8", "int8-fp8"])
def test_int8_attention_follows_its_rule(precision, dtype):
    q, k, v = draw(2, 150, 90, 2, dtype=dtype)
    assert error(attention(q, k, v, precision=precision), naive_int8(q, k, v, precision == "int8-fp8")) < 2e-3


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.02), ("int8-fp8", 0.045)])
def test_int8_attention_is_close_to_the_truth(precision, limit):
    q, k, v = draw(1, 200, 200, 2, d=128)
    assert error(attention(q, k, v, precision=precision), exact(q, k, v)) < limit


def test_smoothing_absorbs_a_shift_of_all_keys():
    q, k, v = draw(1, 100, 100, 2)
    shifted = attention(q, k + 50.0, v, precision="int8")
    assert error(shifted, attention(q, k, v, precision="int8")) < 5e-3


def test_int8_chunks_change_nothing(monkeypatch):
    q, k, v = draw(1, 300, 90, 2)
    whole = attention(q, k, v, precision="int8")
    monkeypatch.setattr(attention_int8, "SCORE_BUDGET", 90 * 2 * 7)
    torch.testing.assert_close(attention(q, k, v, precision="int8"), whole, rtol=1e-5, atol=1e-6)


def test_codes_are_whole_numbers_in_range():
    codes, scales = attention_int8.quantise_rows(torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(0)), 64)
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() == 127
    assert scales.shape == (2, 200, 1)
    assert len(scales[0].unique()) == 4


@pytest.mark.parametrize("op", [attention, sla_attention])
def test_an_unknown_precision_is_refused(op):
    q, k, v = draw(1, 4, 4, 1)
    extra = {} if op is attention else {"proj_weight": torch.eye(32), "proj_bias": torch.zeros(32), "topk": 0.5}
    with pytest.raises(InputError, match="int8-fp8"):
        op(q, k, v, **extra, precision="fp4")


@pytest.mark.parametrize("precision", [None, "int8", "int8-fp8"])
def test_runs_on_meta(precision):
    q, k, v = (t.to("meta") for t in draw(1, 40, 20, 2, dtype=torch.bfloat16))
    y = attention(q, k, v, precision=precision)
    assert y.is_meta
    assert (y.shape, y.dtype) == (q.shape, q.dtype)
