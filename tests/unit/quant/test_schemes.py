"""Every scheme: the error that its own scales allow, its shapes, and its edge values."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.errors import InputError
from turbort.quant import SCHEMES, dequantize, quantize
from turbort.quant.int4 import CLIP_RATIOS, GROUP

ROWWISE = ("int8-token", "int8-channel", "fp8-token", "fp8-channel")
few = examples(25)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 300))
seeds = st.integers(0, 2**31)
HALF = 0.5 + 4 * 2**-24 * 128
"""Half a step of eight bits, and four float32 roundings (scale, quotient, product, difference) of at most 128 steps."""


def draw(shape, seed, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@few
@given(shapes, seeds, st.sampled_from([1e-4, 1.0, 1e4]), st.sampled_from(["int8-token", "int8-channel"]))
def test_int8_rows_err_at_most_half_a_step(shape, seed, scale, scheme):
    x = draw(shape, seed, scale)
    q = quantize(x, scheme)
    assert q.scales.shape == (shape[0], 1)
    assert ((x - dequantize(q)).abs() <= q.scales * HALF).all()
    assert q.values.abs().max() <= 127


@few
@given(shapes, seeds, st.sampled_from(["fp8-token", "fp8-channel"]))
def test_fp8_rows_err_at_most_half_a_unit_in_the_last_place(shape, seed, scheme):
    x = draw(shape, seed)
    q = quantize(x, scheme)
    half_ulp = torch.maximum(x.abs() * 2**-4, q.scales * 2**-10)  # three mantissa bits; subnormals are 2^-9 apart
    assert ((x - dequantize(q)).abs() <= half_ulp * (1 + 1e-5)).all()
    assert dequantize(q).isfinite().all()


@few
@example((16, 293), 9331)  # one value lies 73.5 steps from zero
@given(shapes, seeds)
def test_int8_blocks_err_at_most_half_a_step_except_where_they_saturate(shape, seed):
    x = draw(shape, seed)
    q = quantize(x, "int8-block128")
    steps = q.scales.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    error = (x - dequantize(q)).abs()
    saturated = q.values == 127
    assert (error <= torch.where(saturated, 0.5 + HALF, HALF) * steps).all()


@few
@given(shapes, seeds)
def test_int4_groups_err_at_most_half_a_step_inside_the_range_and_beat_plain_rounding(shape, seed):
    w = draw(shape, seed)
    q = quantize(w, "int4-group128")
    assert q.values.min() >= -8
    assert q.values.max() <= 7
    assert q.scales.shape == (shape[0], -(-shape[1] // GROUP))
    steps = q.scales.repeat_interleave(GROUP, 1)[:, : shape[1]]
    inside = (w >= -8.5 * steps) & (w <= 7.5 * steps)
    error = (w - dequantize(q)).abs()
    assert (error[inside] <= 0.5 * steps[inside] * (1 + 1e-4)).all()
    for group in range(q.scales.shape[1]):
        part = w[:, group * GROUP : (group + 1) * GROUP]
        top = part.abs().amax(1, keepdim=True) / 7
        plain = ((part / top).round().clamp(-8, 7) * top - part).square().sum(1)
        mine = (dequantize(q)[:, group * GROUP : (group + 1) * GROUP] - part).square().sum(1)
        assert (mine <= plain * (1 + 1e-5) + 1e-12).all()


def test_int4_scale_search_clips_a_lone_outlier():
    w = torch.full((1, 128), 1.0)
    w[0, ::2] = -0.6
    w[0, 5] = 1.6
    top = float(w.abs().max()) / 7
    scale = float(quantize(w, "int4-group128").scales)
    assert scale < 0.99 * top
    assert any(abs(scale - top * ratio) < 1e-6 for ratio in CLIP_RATIOS)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tile", [4, 8])
def test_block_sparse_keeps_its_tiles_within_half_a_step_and_drops_the_rest(bits, tile):
    w = draw((21, 35), 3)
    mask = torch.rand(-(-21 // tile), -(-35 // tile), generator=torch.Generator().manual_seed(1)) < 0.5
    q = quantize(w, f"bsq{bits}", tile=tile, mask=mask)
    kept = mask.repeat_interleave(tile, 0)[:21].repeat_interleave(tile, 1)[:, :35]
    steps = q.scales.repeat_interleave(tile, 0)[:21].repeat_interleave(tile, 1)[:, :35]
    back = dequantize(q)
    assert (back[~kept] == 0).all()
    inside = kept if bits == 8 else kept & (w.abs() <= 7.5 * steps)
    assert ((w - back).abs()[inside] <= 0.5 * steps[inside] * (1 + 1e-4)).all()
    assert q.tile == tile
    assert torch.equal(q.mask, mask)


def test_int8_channel_follows_lightx2v():
    w = draw((5, 64), 0)
    w[2] = 1e-7  # below the floor
    scales = w.abs().amax(1, keepdim=True).clamp(min=1e-5) / 127
    q = quantize(w, "int8-channel")
    assert torch.equal(q.scales, scales)
    assert torch.equal(q.values, (w / scales).round().clamp(-128, 127).to(torch.int8))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_stay_zeros(scheme):
    q = quantize(torch.zeros(9, 130), scheme)
    assert torch.equal(dequantize(q), torch.zeros(9, 130))
    assert (q.scales > 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_meta_agrees_with_cpu_about_form(scheme, dtype):
    x = draw((9, 130), 0).to(dtype)
    real, meta = quantize(x, scheme), quantize(x.to("meta"), scheme)
    assert meta.device.type == "meta"
    for name in ("values", "scales"):
        a, b = getattr(real, name), getattr(meta, name)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert real.dequantize().dtype == meta.dequantize().dtype == dtype
    assert real.scales.dtype == torch.float32


@pytest.mark.parametrize("scheme", ROWWISE)
def test_activations_keep_their_leading_axes(scheme):
    x = draw((2, 3, 5, 16), 0)
    q = quantize(x, scheme)
    assert q.shape == x.shape
    assert q.scales.shape == (2, 3, 5, 1)
    assert torch.equal(q.values.reshape(30, 16).float(), quantize(x.reshape(30, 16), scheme).values.float())


def test_an_unknown_scheme_names_the_nearest():
    with pytest.raises(InputError, match="int8-token"):
        quantize(torch.zeros(1, 1), "int8-tokens")


def test_a_tile_of_another_size_is_refused():
    with pytest.raises(InputError, match="4 or 8"):
        quantize(torch.zeros(6, 6), "bsq8", tile=6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_moving_a_qtensor_keeps_everything(scheme):
    q = quantize(draw((8, 128), 0), scheme)
    moved = q.to("cpu")
    assert (moved.scheme, moved.dtype, moved.tile) == (q.scheme, q.dtype, q.tile)
    assert torch.equal(moved.dequantize(), q.dequantize())
    assert q.to("meta").scales.is_meta
