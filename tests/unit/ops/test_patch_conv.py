"""Patching and the VAE's ops against torch's own convolutions and upsampling, and streaming in time."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.errors import InputError
from turbort.ops import causal_conv3d, linear, patchify, unpatchify, vae_norm_silu, vae_upsample


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2)])
def test_patchify_and_linear_are_a_strided_convolution(patch):
    x, weight, bias = draw(2, 6, 4, 8, 10), draw(7, 6, *patch, seed=1), draw(7, seed=2)
    tokens = linear(patchify(x, patch=patch), weight.flatten(1), bias)
    expected = F.conv3d(x, weight, bias, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


@examples(15)
@given(st.tuples(*[st.integers(1, 4)] * 3), st.sampled_from([(1, 2, 2), (2, 1, 3)]), st.integers(1, 5))
def test_unpatchify_undoes_patchify_up_to_the_order_of_features(grid, patch, channels):
    size = [g * p for g, p in zip(grid, patch, strict=True)]
    x = draw(2, channels, *size)
    tokens = patchify(x, patch=patch).unflatten(2, (channels, -1)).transpose(2, 3).flatten(2)
    assert torch.equal(unpatchify(tokens, grid=grid, patch=patch, channels=channels), x)


def test_a_latent_that_does_not_fit_the_patch_is_refused():
    with pytest.raises(InputError, match="3x5x4"):
        patchify(draw(1, 2, 3, 5, 4))


def test_tokens_that_do_not_fit_the_grid_are_refused():
    with pytest.raises(InputError, match="grid"):
        unpatchify(draw(1, 9, 8), grid=(2, 2, 2), channels=2)


@pytest.mark.parametrize("split", [[1, 4], [4, 1], [1, 1, 1, 1, 1], [2, 3]])
def test_streaming_with_a_cache_is_the_whole_convolution(split):
    x, weight, bias = draw(1, 3, 5, 6, 7), draw(4, 3, 3, 3, 3, seed=1), draw(4, seed=2)
    whole = causal_conv3d(x, weight, bias, padding=(1, 1, 1))
    parts, cache = [], None
    for chunk in x.split(split, dim=2):
        parts.append(causal_conv3d(chunk, weight, bias, cache=cache, padding=(1, 1, 1)))
        seen = chunk if cache is None else torch.cat((cache, chunk), 2)
        cache = seen[:, :, -2:]
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=1e-5, atol=1e-5)


def test_no_output_frame_sees_a_later_input_frame():
    x, weight = draw(1, 3, 5, 6, 7), draw(4, 3, 3, 3, 3, seed=1)
    changed = x.clone()
    changed[:, :, 3:] = 0
    a, b = (causal_conv3d(t, weight, padding=(1, 1, 1)) for t in (x, changed))
    assert torch.equal(a[:, :, :3], b[:, :, :3])
    assert not torch.equal(a[:, :, 3], b[:, :, 3])


def test_zeros_come_before_a_short_cache():
    x, cache, weight = draw(1, 2, 1, 3, 3), draw(1, 2, 1, 3, 3, seed=1), draw(2, 2, 3, 1, 1, seed=2)
    y = causal_conv3d(x, weight, cache=cache, padding=(1, 0, 0))
    expected = F.conv3d(torch.cat((torch.zeros_like(x), cache, x), 2), weight)
    torch.testing.assert_close(y, expected)


def test_a_long_cache_gives_its_newest_frames():
    x, cache, weight = draw(1, 2, 1, 3, 3), draw(1, 2, 5, 3, 3, seed=1), draw(2, 2, 3, 1, 1, seed=2)
    padded = causal_conv3d(x, weight, cache=cache, padding=(1, 0, 0))
    assert torch.equal(padded, causal_conv3d(x, weight, cache=cache[:, :, -2:], padding=(1, 0, 0)))


def test_without_time_padding_the_cache_is_not_used_and_strides_apply():
    x, weight = draw(1, 2, 5, 4, 4), draw(3, 2, 3, 1, 1, seed=1)
    y = causal_conv3d(x, weight, cache=draw(1, 2, 2, 4, 4, seed=2), stride=(2, 1, 1))
    torch.testing.assert_close(y, F.conv3d(x, weight, stride=(2, 1, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_vae_norm_is_a_unit_vector_times_gain(dtype):
    x, gamma = draw(2, 24, 2, 3, 5, dtype=dtype), draw(24, 1, 1, 1, seed=1, dtype=dtype)
    expected = F.silu(F.normalize(x.double(), dim=1) * 24**0.5 * gamma.double())
    y = vae_norm_silu(x, gamma)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-14, 1e-8])
def test_vae_norm_of_tiny_vectors_follows_the_floor(size):
    x, gamma = draw(1, 8, 1, 2, 2) * size, torch.ones(8)
    torch.testing.assert_close(vae_norm_silu(x, gamma), F.silu(F.normalize(x, dim=1, eps=1e-12) * 8**0.5), rtol=1e-5, atol=1e-8)


def test_upsampling_is_nearest_exact_then_a_convolution_per_frame():
    x, weight, bias = draw(2, 4, 3, 5, 7), draw(6, 4, 3, 3, seed=1), draw(6, seed=2)
    frames = x.transpose(1, 2).flatten(0, 1)
    expected = F.conv2d(F.interpolate(frames, scale_factor=2.0, mode="nearest-exact"), weight, bias, padding=1)
    y = vae_upsample(x, weight, bias)
    assert y.shape == (2, 6, 3, 10, 14)
    torch.testing.assert_close(y, expected.unflatten(0, (2, 3)).transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolutions_of_16_bits_are_those_of_float32_rounded_once_on_a_cpu(dtype):
    x, weight, bias = draw(1, 32, 2, 9, 9, dtype=dtype), draw(16, 32, 3, 3, 3, seed=1, dtype=dtype), draw(16, seed=2, dtype=dtype)
    wide = causal_conv3d(x.float(), weight.float(), bias.float(), padding=(1, 1, 1))
    assert torch.equal(causal_conv3d(x, weight, bias, padding=(1, 1, 1)), wide.to(dtype))
    wide = vae_upsample(x.float(), weight[:, :, 0].float(), bias.float())
    assert torch.equal(vae_upsample(x, weight[:, :, 0], bias), wide.to(dtype))
