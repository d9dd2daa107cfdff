"""Recording finds every call, who reads whose output, and leaves the model as it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turbort import ops
from turbort.op import slot, slots
from turbort.record import ELSEWHERE, record


class Two(nn.Module):
    def __init__(self, peek: bool) -> None:
        super().__init__()
        self.norm = slot(ops.rms_norm, "norm")
        self.q = slot(ops.linear, "self.qkv")
        self.k = slot(ops.linear, "self.qkv")
        self.weight = nn.Parameter(torch.empty(8, 8))
        self.peek = peek

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x, self.weight[0])
        extra = h * 2 if self.peek else 0
        return self.q(h, self.weight) + self.k(h, self.weight) + extra


def recorded(peek: bool) -> tuple[Two, dict[str, list[object]]]:
    with torch.device("meta"):
        model = Two(peek)
    sites = record(model, lambda: model(torch.empty(1, 4, 8, device="meta")), "m")
    return model, {calls[0].path: list(calls) for calls in sites}


def test_consumers_are_the_sites_that_read_the_output() -> None:
    model, sites = recorded(peek=False)
    assert list(sites) == ["m/norm", "m/q", "m/k"]
    assert sites["m/norm"][0].consumers == ("m/k", "m/q")
    assert sites["m/q"][0].consumers == (ELSEWHERE,)
    assert all(found.fn is found.op.reference for found in slots(model).values())


def test_a_read_outside_any_slot_is_seen() -> None:
    _, sites = recorded(peek=True)
    assert ELSEWHERE in sites["m/norm"][0].consumers


def test_distinct_shapes_of_one_site_are_all_kept() -> None:
    with torch.device("meta"):
        model = Two(False)
    sites = record(model, lambda: [model(torch.empty(1, n, 8, device="meta")) for n in (4, 4, 7)], "m")
    assert [call["x"].shape for call in sites[0]] == [(1, 4, 8), (1, 7, 8)]
