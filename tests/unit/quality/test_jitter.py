"""Jitter on purpose: which values it multiplies, and that a call site is itself again afterwards."""

from __future__ import annotations

import torch

from turbort import ops
from turbort.op import Slot
from turbort.quant.schemes import quantize
from turbort.testing.jitter import gains, jitter


def test_gains_alternate_or_follow_a_seed() -> None:
    assert gains(3, 0.25) == [1.25, 0.75, 1.25]
    drawn = gains(64, 0.25, 1)
    assert set(drawn) == {1.25, 0.75}
    assert drawn == gains(64, 0.25, 1) != gains(64, 0.25, 2)


def test_frames_are_scaled_and_the_site_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, 16), torch.randn(4, 16)
    slot = Slot(ops.linear, "ffn.in")
    plain, kept = slot(x, weight), slot.fn
    with jitter(slot, [2.0, 1.0, 0.5]):
        shaken = slot(x, weight)
        codes = slot(quantize(x, "int8-token"), quantize(weight, "int8-channel"))
    factors = torch.tensor([2.0, 2.0, 1.0, 1.0, 0.5, 0.5]).view(1, 6, 1)
    torch.testing.assert_close(shaken, plain * factors)
    torch.testing.assert_close(codes, ops.linear(quantize(x, "int8-token"), quantize(weight, "int8-channel")) * factors)
    assert slot.fn is kept
