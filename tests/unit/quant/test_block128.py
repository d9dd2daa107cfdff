"""The 128x128 scheme against a plain loop over blocks, and the edge values of TurboDiffusion's rule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.quant import dequantize, quantize


def by_loop(x):
    rows = x.reshape(-1, x.shape[-1]).float()
    m, k = rows.shape
    values = torch.zeros(m, k, dtype=torch.int8)
    scales = torch.zeros(-(-m // 128), -(-k // 128))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = rows[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]
            amax = torch.maximum(part.abs().max(), torch.tensor(1e-8))
            values[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128] = (
                (part * (128 / amax)).round().clamp(-128, 127).to(torch.int8)
            )
            scales[i, j] = amax / 128
    return values.reshape(x.shape), scales


@examples(25)
@given(st.integers(1, 3), st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**31))
def test_matches_a_loop_over_blocks(batch, rows, cols, seed):
    x = torch.randn(batch, rows, cols, generator=torch.Generator().manual_seed(seed))
    q = quantize(x, "int8-block128")
    values, scales = by_loop(x)
    assert torch.equal(q.values, values)
    assert torch.equal(q.scales, scales)


def test_bf16_input_is_quantised_from_its_exact_values():
    x = torch.randn(130, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(quantize(x, "int8-block128").values, by_loop(x)[0])


def test_the_positive_peak_saturates_and_the_negative_one_does_not():
    x = torch.zeros(1, 128)
    x[0, 0] = 2.0
    assert quantize(x, "int8-block128").values[0, 0] == 127
    assert quantize(-x, "int8-block128").values[0, 0] == -128


@pytest.mark.parametrize("size", [1e-6, 1e-9])
def test_small_values_keep_their_digits_down_to_the_floor(size):
    x = torch.tensor([[1.0, -0.5]]) * size
    q = quantize(x, "int8-block128")
    assert q.values.tolist() == ([[127, -64]] if size > 1e-8 else [[13, -6]])
    assert torch.equal(q.scales, torch.tensor([[max(size, 1e-8)]]) / 128)


def test_halves_round_to_even():
    x = torch.tensor([[128.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert quantize(x, "int8-block128").values[0, 1:].tolist() == [0, 2, 2, 0, -2]


def test_rows_of_different_batch_items_share_a_block():
    x = torch.ones(2, 64, 128)
    x[1] = 100.0
    q = quantize(x, "int8-block128")
    assert q.scales.shape == (1, 1)
    assert torch.equal(q.values[0], torch.ones(64, 128, dtype=torch.int8))


def test_dequantising_follows_the_checkpoint_loader_rule():
    values = torch.randint(-128, 128, (130, 260), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    scales = torch.rand(2, 3, generator=torch.Generator().manual_seed(1))
    q = quantize(torch.zeros(130, 260), "int8-block128")
    full = scales.repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :260]
    assert torch.equal(dequantize(type(q)("int8-block128", values, scales, torch.float32)), values * full)
