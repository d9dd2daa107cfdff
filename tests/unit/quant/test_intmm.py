"""Integer products are exact, whatever path computes them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.quant import intmm
from turbort.quant.intmm import chunked_int_matmul, int_matmul

PATHS = [int_matmul, chunked_int_matmul]


def exact(a, b):
    return (a.to(torch.int64) @ b.to(torch.int64).t()).to(torch.int32)


@pytest.mark.parametrize("product", PATHS)
@examples(20)
@given(st.integers(1, 40), st.integers(1, 2100), st.integers(1, 40), st.integers(0, 2**31))
def test_matches_int64(product, m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
    b = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)
    assert torch.equal(product(a, b), exact(a, b))


@pytest.mark.parametrize("product", PATHS)
@pytest.mark.parametrize(("left", "right"), [(-128, -128), (127, -128), (127, 127)])
def test_extremes_do_not_saturate(product, left, right):
    k = 13824
    a = torch.full((3, k), left, dtype=torch.int8)
    b = torch.full((5, k), right, dtype=torch.int8)
    b[1, ::2] = 1
    assert torch.equal(product(a, b), exact(a, b))


@pytest.mark.parametrize("product", PATHS)
def test_a_single_input(product):
    a = torch.tensor([[44], [-3]], dtype=torch.int8)
    b = torch.tensor([[-81], [-11], [7]], dtype=torch.int8)
    assert torch.equal(product(a, b), exact(a, b))


@pytest.mark.parametrize("product", PATHS)
def test_slices_of_wider_matrices(product):
    a = torch.randint(-128, 128, (9, 300), dtype=torch.int8)[:, 17:145]
    b = torch.randint(-128, 128, (7, 300), dtype=torch.int8)[:, 17:145]
    assert torch.equal(product(a, b), exact(a, b))


def test_autocast_does_not_reach_the_chunks():
    a = torch.randint(-128, 128, (4, 1024), dtype=torch.int8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chunked_int_matmul(a, a), exact(a, a))


def test_cpus_without_vnni_take_the_chunks(monkeypatch):
    monkeypatch.setattr(intmm, "has_vnni", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)
    a = torch.randint(-128, 128, (4, 77), dtype=torch.int8)
    assert torch.equal(int_matmul(a, a), exact(a, a))


def test_runs_on_meta():
    a = torch.zeros(3, 50, dtype=torch.int8, device="meta")
    b = torch.zeros(4, 50, dtype=torch.int8, device="meta")
    y = int_matmul(a, b)
    assert (y.shape, y.dtype) == ((3, 4), torch.int32)
