"""Which tiles are kept, and what kept weights make up for: against brute force and against magnitude."""

from __future__ import annotations

import pytest
import torch

from turbort.errors import InputError
from turbort.quant import quantize
from turbort.quant.prune import _inverse, by_magnitude, output_error, saliency, second_order


def data(n=24, k=40, rows=600, seed=0):
    """A weight, and inputs that are strongly correlated and of very different sizes, as after a feed-forward's GELU."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, 10, generator=g) @ torch.randn(10, k, generator=g) / 4 + 0.5 * torch.eye(k)
    x = torch.randn(rows, k, generator=g) @ mix * torch.logspace(-1, 1, k)[torch.randperm(k, generator=g)]
    return torch.randn(n, k, generator=g), x, x.t() @ x / rows


def test_the_error_of_the_output_is_that_of_real_inputs():
    weight, x, moments = data()
    changed = by_magnitude(weight, 4, 0.5).weight
    real = float((x @ (weight - changed).t()).square().sum() / (x @ weight.t()).square().sum())
    assert output_error(weight, changed, moments) == pytest.approx(real, rel=1e-4)


def test_saliency_is_the_cost_of_the_best_correction():
    """Drop one tile and solve least squares for everything else in its rows."""
    weight, _, moments = data(n=8, k=12)
    inverse = _inverse(moments)
    h = torch.linalg.inv(inverse.double())  # with its damping
    found = saliency(weight, inverse, 4)
    for row in range(2):
        for column in range(3):
            dropped = list(range(4 * column, 4 * column + 4))
            rest = [i for i in range(12) if i not in dropped]
            w = weight[4 * row : 4 * row + 4].double()
            # Best change d of the rest for a change -w_B in B: d = w_B H_B,rest H_rest^-1.
            d = torch.zeros_like(w)
            d[:, dropped] = -w[:, dropped]
            d[:, rest] = w[:, dropped] @ h[dropped][:, rest] @ torch.linalg.inv(h[rest][:, rest])
            assert float(found[row, column]) == pytest.approx(float((d @ h * d).sum()), rel=1e-3)


@pytest.mark.parametrize("tile", [4, 8])
@pytest.mark.parametrize("density", [0.3, 0.6])
def test_second_order_loses_far_less_than_magnitude(tile, density):
    weight, _, moments = data()
    ours, theirs = second_order(weight, moments, tile, density), by_magnitude(weight, tile, density)
    assert ours.mask.sum() == theirs.mask.sum() == round(density * ours.mask.numel())
    spread = ours.mask.repeat_interleave(tile, 0)[:24].repeat_interleave(tile, 1)[:, :40]
    assert torch.equal(ours.weight != 0, spread)
    uncorrected = output_error(weight, weight * spread, moments)
    corrected = output_error(weight, ours.weight, moments)
    assert corrected < 0.8 * uncorrected
    assert corrected < 0.5 * output_error(weight, theirs.weight, moments)


@pytest.mark.parametrize("scheme", ["bsq8", "bsq4"])
def test_quantising_the_kept_tiles_adds_little(scheme):
    weight, _, moments = data()
    found = second_order(weight, moments, 4, 0.5)
    q = quantize(found.weight, scheme, tile=4, mask=found.mask)
    assert torch.equal(q.mask, found.mask)
    pruned, both = (output_error(weight, w, moments) for w in (found.weight, q.dequantize()))
    assert both < pruned + (1e-3 if scheme == "bsq8" else 3e-2)


def test_everything_is_kept_at_density_one_and_edges_need_not_fit():
    weight, _, moments = data(n=10, k=13)
    assert torch.allclose(second_order(weight, moments, 8, 1.0).weight, weight)
    found = second_order(weight, moments, 8, 0.5)
    assert found.mask.shape == (2, 2)


def test_inputs_that_never_come_cost_nothing():
    weight, _, moments = data(n=8, k=16)
    moments[:4], moments[:, :4] = 0, 0
    assert not second_order(weight, moments, 4, 0.75).mask[:, 0].any()
    assert torch.isfinite(second_order(weight, torch.zeros(16, 16), 4, 0.5).weight).all()


def test_wrong_arguments_are_refused():
    weight, _, moments = data()
    with pytest.raises(InputError, match="do not belong"):
        second_order(weight, moments[:8, :8], 4, 0.5)
    with pytest.raises(InputError, match="density"):
        second_order(weight, moments, 4, 0.0)
