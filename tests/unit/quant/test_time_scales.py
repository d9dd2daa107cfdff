"""Scales shared along time: the same in all frames, no finer than the largest needs, and taken by kernels as any token's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.errors import InputError
from turbort.ops import linear
from turbort.quant.schemes import TIME_SCHEMES, quantize, quantize_time
from turbort.time_scales import SCHEMES


def drawn(batch: int, frames: int, places: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(batch, frames * places, 1, generator=generator).mul(6).exp()
    return torch.randn(batch, frames * places, width, generator=generator) * sizes


sizes = st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 5), st.integers(1, 40))


@examples(60)
@given(size=sizes, seed=st.integers(0, 1000), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_int8_rounds_to_the_nearest_code_of_the_shared_scale(size: tuple[int, ...], seed: int, dtype: torch.dtype) -> None:
    batch, frames, places, width = size
    x = drawn(*size, seed=seed).to(dtype)
    q = quantize_time(x, "int8-token", frames)
    assert (q.scheme, q.dtype, q.values.dtype) == ("int8-token", dtype, torch.int8)
    assert q.scales.shape == (batch, frames * places, 1)
    assert q.scales.is_contiguous()
    by_frame = q.scales.view(batch, frames, places)
    assert torch.equal(by_frame, by_frame[:, :1].expand_as(by_frame))
    wanted = x.float().view(batch, frames, places, width).abs().amax((1, 3)).clamp_min(1e-8) / 127
    torch.testing.assert_close(by_frame[:, 0], wanted)
    assert ((x.float() - q.dequantize(torch.float32)).abs() <= 0.5001 * q.scales + 1e-12).all()
    assert int(q.values.abs().max()) <= 127


@pytest.mark.parametrize("scheme", TIME_SCHEMES)
def test_one_frame_shares_with_nobody(scheme: str) -> None:
    x = drawn(2, 1, 7, 33)
    alone, shared = quantize(x, scheme), quantize_time(x, scheme, 1)
    assert torch.equal(alone.scales, shared.scales)
    assert torch.equal(alone.values.float(), shared.values.float())


def test_the_largest_frame_is_rounded_as_with_its_own_scale() -> None:
    """Sharing never makes a scale smaller: what is largest keeps its own, the rest gets coarser."""
    x = drawn(1, 5, 3, 64)
    alone, shared = quantize(x, "int8-token").scales.view(5, 3), quantize_time(x, "int8-token", 5).scales.view(5, 3)
    assert torch.equal(alone.amax(0), shared[0])
    assert (shared >= alone).all()


def test_a_linear_takes_shared_scales_as_it_takes_those_of_tokens() -> None:
    x, weight = drawn(2, 3, 4, 96), torch.randn(40, 96)
    q, w = quantize_time(x, "int8-token", 3), quantize(weight, "int8-channel")
    exact = q.dequantize(torch.float32).double() @ w.dequantize(torch.float32).double().t()
    torch.testing.assert_close(linear(q, w).double(), exact, rtol=1e-4, atol=1e-3)


def test_what_cannot_be_shared_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="shared over 4 frames: x is 1x15x8"):
        quantize_time(drawn(1, 3, 5, 8), "int8-token", 4)
    with pytest.raises(InputError, match="int8-block128"):
        quantize_time(drawn(1, 3, 5, 8), "int8-block128", 3)


def test_the_planner_and_the_quantiser_share_the_same_schemes() -> None:
    assert SCHEMES == TIME_SCHEMES
