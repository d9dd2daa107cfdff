"""Nibble packing, block-sparse patterns and their compact storage."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.errors import InputError
from turbort.quant import block_mask, block_sparsify, quantize
from turbort.quant.bsq import compact, expand, from_tiles, to_tiles
from turbort.quant.int4 import pack_nibbles, unpack_nibbles

few = examples(25)
seeds = st.integers(0, 2**31)


def codes(shape, seed):
    return torch.randint(-8, 8, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@few
@given(st.integers(1, 9), st.integers(1, 300), seeds)
def test_nibbles_come_back(rows, cols, seed):
    original = codes((rows, cols), seed)
    packed = pack_nibbles(original)
    assert packed.shape == (rows, -(-cols // 2))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_nibbles(packed, cols), original)


def test_the_even_index_is_the_low_nibble():
    assert pack_nibbles(torch.tensor([[1, -1, 7, -8]], dtype=torch.int8)).tolist() == [[0xF1, 0x87]]


@few
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 8]), st.sampled_from([4, 8]), seeds)
def test_compact_storage_comes_back(n, k, tile, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n, k, generator=generator)
    mask = torch.rand(-(-n // tile), -(-k // tile), generator=generator) < 0.4
    q = quantize(w, f"bsq{bits}", tile=tile, mask=mask)
    stored = compact(q.values, q.scales, mask, tile, bits)
    assert stored.codes.shape[0] == int(mask.sum())
    values, scales, found = expand(stored)
    assert torch.equal(values, q.values)
    assert torch.equal(found, mask)
    assert torch.equal(scales[mask], q.scales[mask])


def test_four_bit_tiles_take_half_the_bytes():
    q = quantize(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)), "bsq4")
    assert compact(q.values, q.scales, q.mask, 8, 4).codes.numel() == 16 * 16 // 2


@few
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 8]))
def test_tiles_come_back(n, k, tile):
    w = torch.arange(n * k).view(n, k)
    assert torch.equal(from_tiles(to_tiles(w, tile), n, k), w)


@few
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 8]), st.floats(0.01, 1.0), seeds)
def test_pruning_keeps_the_strongest_tiles(n, k, tile, density, seed):
    w = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    mask = block_mask(w, tile, density)
    energy = to_tiles(w, tile).square().sum((2, 3))
    assert int(mask.sum()) == max(1, round(density * mask.numel()))
    if not mask.all():
        assert energy[mask].min() >= energy[~mask].max()
    pruned = block_sparsify(w, tile, density)
    assert torch.equal(to_tiles(pruned, tile).ne(0).flatten(2).any(-1), mask)
    kept = mask.repeat_interleave(tile, 0)[:n].repeat_interleave(tile, 1)[:, :k]
    assert torch.equal(pruned[kept], w[kept])


def test_equal_tiles_go_to_the_lower_index():
    assert block_mask(torch.ones(8, 16), 4, 0.5).tolist() == [[True] * 4, [False] * 4]


def test_quantising_a_pruned_weight_finds_its_pattern():
    w = block_sparsify(torch.randn(32, 64, generator=torch.Generator().manual_seed(0)), 8, 0.3)
    assert torch.equal(quantize(w, "bsq8").mask, block_mask(w, 8, 0.3))


@pytest.mark.parametrize("density", [0.0, -1.0, 1.5])
def test_a_density_outside_the_unit_interval_is_refused(density):
    with pytest.raises(InputError, match="density"):
        block_sparsify(torch.ones(8, 8), 4, density)
