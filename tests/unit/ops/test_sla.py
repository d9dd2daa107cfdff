"""Sparse-linear attention against a masked softmax over all keys, its limits, its gradients, and the block map."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.errors import InputError
from turbort.ops import attention, block_map, sla_attention
from turbort.ops.block_map import chosen_blocks, pooled_scores, tree_sum
from turbort.ops.sla import linear_branch, sparse_attention
from turbort.quant.schemes import quantize

few = examples(20)
D = 16


def draw(length, heads=2, batch=1, seed=0, d=D, keys=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, n, heads, d, generator=generator).to(dtype) for n in (length, keys or length, keys or length))


def projection(d=D):
    generator = torch.Generator().manual_seed(99)
    return torch.randn(d, d, generator=generator) / d**0.5, torch.randn(d, generator=generator)


def allowed(lut, lq, lk, block):
    """Which key each query may see, bool [B, H, Lq, Lk]."""
    batch, heads, nq, _ = lut.shape
    blocks = torch.zeros(batch, heads, nq, -(-lk // block[1]), dtype=torch.bool).scatter(3, lut.long(), True)
    return blocks.repeat_interleave(block[0], 2)[:, :, :lq].repeat_interleave(block[1], 3)[..., :lk]


def naive_sla(q, k, v, weight, bias, lut, block):
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~allowed(lut, q.shape[1], k.shape[1], block), -math.inf)
    sparse = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
    weights = torch.einsum("bqhd,bkhd->bhqk", q.softmax(-1), k.softmax(-1))
    linear = torch.einsum("bhqk,bkhd->bqhd", weights / (1e-5 + weights.sum(-1, keepdim=True)), v)
    return sparse + linear @ weight.double().t() + bias.double()


@few
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([(8, 16), (16, 8), (8, 8), (5, 7)]),
    st.floats(0.02, 1.0),
    st.integers(0, 1000),
)
def test_matches_a_masked_softmax_over_all_keys(length, keys, block, topk, seed):
    q, k, v = draw(length, keys=keys, seed=seed)
    weight, bias = projection()
    lut = block_map(q, k, topk, block)
    y = sla_attention(q, k, v, weight, bias, topk=topk, block=block)
    torch.testing.assert_close(y, naive_sla(q, k, v, weight, bias, lut, block).float(), rtol=1e-4, atol=1e-5)


def test_all_blocks_are_dense_attention_plus_the_linear_branch():
    q, k, v = draw(77, batch=2)
    weight, bias = projection()
    y = sla_attention(q, k, v, weight, bias, topk=1.0, block=(8, 16))
    expected = attention(q, k, v) + linear_branch(q, k, v) @ weight.t() + bias
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [64, 77])
def test_gathering_every_block_is_dense_attention(length):
    q, k, v = draw(length)
    lut = block_map(q, k, 1.0, (8, 16))
    torch.testing.assert_close(sparse_attention(q, k, v, lut, (8, 16), None), attention(q, k, v), rtol=1e-5, atol=1e-5)


def test_query_chunks_change_nothing(monkeypatch):
    import turbort.ops.sla_sparse as module

    q, k, v = draw(77)
    lut = block_map(q, k, 0.5, (8, 16))
    whole = {p: sparse_attention(q, k, v, lut, (8, 16), p) for p in (None, "int8", "int8-fp8")}
    monkeypatch.setattr(module, "GATHER_BUDGET", 1)
    for precision, expected in whole.items():
        torch.testing.assert_close(sparse_attention(q, k, v, lut, (8, 16), precision), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.03), ("int8-fp8", 0.07)])
def test_int8_branches_stay_close_to_float(precision, limit):
    q, k, v = draw(300, d=128)
    lut = block_map(q, k, 0.5, (64, 128))
    exact = sparse_attention(q, k, v, lut, (64, 128), None)
    y = sparse_attention(q, k, v, lut, (64, 128), precision)
    assert 1e-4 < float((y - exact).norm() / exact.norm()) < limit


def test_padding_of_the_last_key_block_never_counts():
    q, k, v = draw(40, keys=17)  # the second key block holds one key
    lut = torch.ones(1, 2, 5, 1, dtype=torch.int32)
    for precision in (None, "int8"):
        y = sparse_attention(q, k, v, lut, (8, 16), precision)
        torch.testing.assert_close(y, v[:, 16:17].expand(-1, 40, -1, -1), rtol=1e-2, atol=1e-2)


def test_gradients_match_the_naive_formula():
    q, k, v = (t.requires_grad_() for t in draw(45))
    weight, bias = (t.requires_grad_() for t in projection())
    lut = block_map(q, k, 0.4, (8, 16))
    up = torch.randn(q.shape, generator=torch.Generator().manual_seed(5))
    inputs = (q, k, v, weight, bias)
    mine = torch.autograd.grad((sla_attention(*inputs, topk=0.4, block=(8, 16)) * up).sum(), inputs)
    naive = torch.autograd.grad((naive_sla(*inputs, lut, (8, 16)) * up).sum(), inputs)
    for a, b in zip(mine, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_trains_under_autocast():
    q, k, v = (t.bfloat16().requires_grad_() for t in draw(45))
    weight, bias = (t.requires_grad_() for t in projection())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sla_attention(q, k, v, weight, bias, topk=0.4, block=(8, 16))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(t.grad.isfinite().all() and t.grad.abs().sum() > 0 for t in (q, k, v, weight, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_stay_close_to_fp32(dtype):
    q, k, v = draw(77)
    weight, bias = projection()
    exact = sla_attention(q, k, v, weight, bias, topk=1.0, block=(8, 16))
    y = sla_attention(*(t.to(dtype) for t in (q, k, v, weight, bias)), topk=1.0, block=(8, 16))
    assert float((y.float() - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("precision", [None, "int8", "int8-fp8"])
def test_runs_on_meta_at_full_length(precision):
    q = torch.empty(1, 32760, 12, 128, dtype=torch.bfloat16, device="meta")
    weight, bias = (t.to("meta") for t in projection(128))
    assert sla_attention(q, q, q, weight, bias, topk=0.1, precision=precision).shape == q.shape


# --- the block map ---


@few
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([(8, 16), (16, 8), (5, 7)]),
    st.floats(0.02, 1.0),
    st.integers(0, 1000),
)
def test_block_map_picks_the_best_pooled_scores(lq, lk, block, topk, seed):
    q, k, _ = draw(lq, keys=lk, seed=seed)
    lut = block_map(q, k, topk, block)
    centred = k - k.mean(1, keepdim=True)
    q_pool = torch.stack([q[:, i : i + block[0]].mean(1) for i in range(0, lq, block[0])], 1)
    k_pool = torch.stack([centred[:, i : i + block[1]].mean(1) for i in range(0, lk, block[1])], 1)
    scores = torch.einsum("bqhd,bkhd->bhqk", q_pool.double(), k_pool.double())
    count = max(1, min(scores.shape[-1], int(topk * scores.shape[-1])))
    assert lut.dtype == torch.int32
    assert lut.shape == (*scores.shape[:3], count)
    assert (lut.diff(dim=-1) > 0).all()
    assert lut.min() >= 0
    assert lut.max() < scores.shape[-1]
    worst_kept = scores.gather(-1, lut.long()).amin(-1)
    best = scores.sort(-1, descending=True).values[..., count - 1]
    torch.testing.assert_close(worst_kept, best, rtol=1e-4, atol=1e-5)


def test_equal_scores_go_to_the_lower_block():
    q, k = torch.ones(1, 16, 1, D), torch.ones(1, 64, 1, D)
    assert block_map(q, k, 0.5, (8, 8)).tolist() == [[[[0, 1, 2, 3], [0, 1, 2, 3]]]]


@pytest.mark.parametrize(
    ("topk", "blocks", "count"), [(0.1, 5, 1), (0.01, 256, 2), (0.001, 256, 1), (0.1, 256, 25), (1.0, 7, 7), (0.5, 1, 1)]
)
def test_the_number_of_blocks(topk, blocks, count):
    assert chosen_blocks(topk, blocks) == count


def test_a_shift_of_all_keys_changes_no_score():
    q, k, _ = draw(64)
    torch.testing.assert_close(pooled_scores(q, k + 3.0, (8, 16)), pooled_scores(q, k, (8, 16)), rtol=1e-3, atol=1e-4)


def test_pooling_uses_the_bf16_values_in_fp32():
    q, k, _ = draw(64, dtype=torch.bfloat16)
    assert torch.equal(pooled_scores(q, k, (8, 16)), pooled_scores(q.float(), k.float(), (8, 16)))


@few
@given(st.integers(1, 40), st.integers(0, 1000))
def test_tree_sum_is_a_sum_in_a_fixed_order(count, seed):
    x = torch.randn(3, count, 5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(tree_sum(x, 1), x.sum(1), rtol=1e-5, atol=1e-5)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(tree_sum(strided, 1), tree_sum(x, 1))


@pytest.mark.parametrize("topk", [0.0, -0.1, 1.01])
def test_a_share_outside_the_unit_interval_is_refused(topk):
    q, k, _ = draw(8)
    with pytest.raises(InputError, match="topk"):
        block_map(q, k, topk)


def test_an_empty_block_is_refused():
    q, k, _ = draw(8)
    with pytest.raises(InputError, match="block"):
        block_map(q, k, 0.5, (0, 8))


@pytest.mark.parametrize("block", [(64, 128), (128, 64)])
def test_sums_that_come_along_choose_the_same_blocks(block):
    """Whether q, k or both bring the sums of their blocks; sums over blocks of another size are made anew."""
    q, k = (torch.randn(2, 333, 2, 16, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (0, 1))
    scores = pooled_scores(q, k, block)
    assert torch.equal(scores, pooled_scores(quantize(q, f"sums-{block[0]}"), quantize(k, f"sums-{block[1]}"), block))
    assert torch.equal(scores, pooled_scores(q, quantize(k, f"sums-{block[0]}"), block))


def test_sums_leave_the_values_alone():
    x = torch.randn(1, 70, 2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    summed = quantize(x, "sums-64")
    assert torch.equal(summed.dequantize(), x)
    torch.testing.assert_close(summed.scales[:, 1], x[:, 64:].float().sum(1))
