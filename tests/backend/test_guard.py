"""Guards notice stray writes, poison shows what was not written, and views keep their values."""

import pytest
import torch

from turbort.precision import PRECISIONS
from turbort.quant import quantize
from turbort.testing.compare import CheckFailed, Expected, Measure, judge
from turbort.testing.guard import Guards, Poison, swapped, wide_rows
from turbort.testing.values import all_same_bits, same_bits, snapshot

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.int32, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
def test_guards_hold_the_values_and_notice_writes_next_to_them(dtype):
    guards = Guards()
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    inner = guards.copy("x", tensor)
    assert same_bits(inner, tensor)
    assert guards.damage() == []
    inner.as_strided((13,), (1,), inner.storage_offset())[12] = 0
    assert guards.damage() == ["x"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    "allocate",
    [
        lambda d: torch.empty(3, 4, dtype=d),
        lambda d: torch.empty_like(torch.ones(3, 4), dtype=d),
        lambda d: torch.ones(2).new_empty((3, 4), dtype=d),
        lambda d: torch.empty_strided((3, 4), (1, 3), dtype=d),
    ],
)
def test_allocations_start_as_nan(dtype, allocate):
    with Poison() as poison:
        fresh = allocate(dtype)
    assert fresh.dtype == dtype
    assert fresh.float().isnan().all()
    assert poison.guards.damage() == []


def test_a_stray_write_into_a_kernels_own_allocation_is_found():
    with Poison() as poison:
        out = torch.empty(5)
    out.as_strided((1,), (1,), out.storage_offset() - 1).zero_()
    assert poison.guards.damage() == ["an allocation of the kernel"]


@pytest.mark.parametrize("change", [wide_rows, swapped])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 5)])
def test_views_keep_the_values(change, shape):
    x = torch.randn(shape)
    view = change(x)
    assert same_bits(view, x)
    assert x.dim() < 2 or not x.numel() or not view.is_contiguous()


def test_bits_tell_nan_and_signs_apart():
    assert same_bits(torch.tensor(float("nan")), torch.tensor(float("nan")))
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same_bits(torch.tensor([1]), torch.tensor([1.0]))
    assert all_same_bits(snapshot([torch.ones(2), {"a": torch.zeros(1)}]), [torch.ones(2), torch.zeros(1)])


def expected(reference, truth=None):
    return Expected.of("output", reference, (reference if truth is None else truth).double())


def test_one_wrong_row_in_a_thousand_is_over_budget():
    """The mean alone would not tell: 1/2000 of the energy is inside w4a8's budget."""
    x = torch.randn(2000, 256, generator=torch.Generator().manual_seed(0))
    wrong = x.clone()
    wrong[-1] = 0
    assert Measure(x.double()).errors(wrong).nmse < PRECISIONS["w4a8"].max_nmse / 10
    with pytest.raises(CheckFailed, match="axis 0 index 1999"):
        judge(wrong, expected(x), PRECISIONS["w4a8"])


def test_the_references_own_error_widens_the_budget():
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) * 0.1
    other = torch.randn(64, 256, generator=torch.Generator().manual_seed(2)) * 0.1
    verdict = judge(x + other, expected(x + noise, x), PRECISIONS["bf16"])
    assert verdict.budget == pytest.approx(0.02, rel=0.1)
    with pytest.raises(CheckFailed, match="error of output"):
        judge(x + other * 2, expected(x + noise, x), PRECISIONS["bf16"])


def test_infinities_count_only_where_the_reference_has_none():
    x = torch.tensor([1.0, float("inf"), 2.0])
    judge(x.clone(), expected(x), PRECISIONS["fp16"])
    judge(torch.tensor([1.0, 65504.0, 2.0]), expected(x), PRECISIONS["fp16"])
    with pytest.raises(CheckFailed, match="1 of 3 values"):
        judge(torch.tensor([float("nan"), 1.0, 2.0]), expected(x), PRECISIONS["fp16"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q.dequantize(), "is a Tensor"),
        (lambda q: quantize(q.dequantize(), "fp8-token"), "scheme"),
        (lambda q: type(q)(q.scheme, q.values, q.scales.squeeze(-1), q.dtype), "shape of the scales"),
        (lambda q: type(q)(q.scheme, q.values, q.scales.double(), q.dtype), "dtype of the scales"),
        (lambda q: type(q)(q.scheme, q.values, q.scales, torch.float16), "dtype of output"),
    ],
)
def test_quantised_outputs_have_the_form_of_the_scheme(change, message):
    q = quantize(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), "int8-token")
    with pytest.raises(CheckFailed, match=message):
        judge(change(q), Expected.of("output", q, q.dequantize(torch.float64)), PRECISIONS["fp32"])
