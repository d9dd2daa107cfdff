"""Samples of what call sites are given, and the share of outliers in them.

A few evenly spread rows per site go into buffers that exist before the first step, so that a captured graph can fill them.
All sites are judged together after the step, with one transfer to the host.

Where a step is run call by call, what a sample costs is the host's way into two more operations, not their arithmetic (45 us on a
busy core, 5 us in a loop). There, quiet sites are sampled in turns: all of them in a video's first step, then each in every
`EVERY`-th. A step that a device replays holds all copies or none. With all of them a step of Wan 1.3B on an H100 took 1.1 %
longer, two thirds of it the copies (240 launches), so a quiet model is sampled in every second step, and at every step as soon as
a site is near the threshold or promoted.

* Linears with int8 activations: a token is rounded with a step of amax / 127. A row is an outlier where a few large values
  leave so few steps for the others that those are rounded as coarsely as 4-bit weights are: with r the root mean square of the
  row without its values beyond amax / 2, c = amax / r, their relative error is c^2 / (12 x 127^2), and the budget of w4a8 is
  2e-2, so c > 127 sqrt(12 x 2e-2) = 62. Normal values have c = 4. The scale cancels, so codes do as well as values.
* INT8 attention: a logit q k / sqrt(d) gets an error of variance (|q|^2 s_k^2 + |k|^2 s_q^2) / (12 d), s the scales of q and
  of the smoothed k. It is an outlier where the standard deviation is beyond 0.1: its softmax weight is then off by a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from turbort.guard.groups import Group
from turbort.precision import PRECISIONS
from turbort.quant.qtensor import QTensor

ROWS = 32
"""Rows per site and step: a share of 5 % is two of them."""
EVERY = 4
"""Steps between two samples of a quiet site, where steps are run call by call."""
CREST = 127.0 * math.sqrt(12.0 * PRECISIONS["w4a8"].max_nmse)
LOGIT_ERROR = 0.1


class Probes:
    """The buffers of one model's groups, in the order of the groups."""

    def __init__(self, groups: Sequence[Group], device: torch.device) -> None:
        self.groups = tuple(groups)
        self.listening: frozenset[str] | None = None
        """Groups that are sampled in this step; None samples all."""
        self._last = [0.0] * len(self.groups)
        self._place: dict[str, Tensor] = {}
        self._buffers: list[tuple[str, Tensor, list[int]]] = []
        for kind, width, heads in dict.fromkeys((g.kind, g.width, g.heads) for g in groups):
            members = [i for i, g in enumerate(groups) if (g.kind, g.width, g.heads) == (kind, width, heads)]
            shape = (len(members), 2, ROWS, heads, width // heads) if kind == "logits" else (len(members), ROWS, width)
            buffer = torch.zeros(shape, device=device)
            self._buffers.append((kind, buffer, members))
            self._place |= {groups[i].name: buffer[row] for row, i in enumerate(members)}

    def take(self, group: Group, args: tuple[Any, ...]) -> None:
        """Copy rows of a call's arguments; no transfer, no allocation, and two operations a tensor: each costs the host more
        than its arithmetic."""
        if self.listening is not None and group.name not in self.listening:
            return
        place = self._place[group.name]
        if group.kind == "logits":
            for target, value in zip(place, args[:2], strict=True):
                _copy(target, _values(value)[0])
            return
        x = _values(args[0])
        _copy(place, x if x.ndim == 2 else x.flatten(0, -2))

    def turn(self, step: int, always: frozenset[str]) -> None:
        """Sample, in a video's step (counted from 1), the groups whose turn it is and those in `always`."""
        mine = {group.name for i, group in enumerate(self.groups) if (i + step) % EVERY == 0}
        self.listening = None if step == 1 else frozenset(mine | always)

    def alternate(self, step: int, near: frozenset[str]) -> None:
        """Sample everything in a video's odd steps (counted from 1), and in every step while there are groups `near`."""
        self.listening = None if step % 2 or near else frozenset()

    @property
    def listens(self) -> bool:
        """Whether any group is sampled in this step."""
        return self.listening is None or bool(self.listening)

    def shares(self) -> list[float]:
        """Share of outliers per group when it was last sampled; the samples are used up. One transfer to the host."""
        places: list[int] = []
        found: list[Tensor] = []
        for kind, buffer, members in self._buffers:
            heard = [row for row, i in enumerate(members) if self.listening is None or self.groups[i].name in self.listening]
            if heard:
                samples = buffer if len(heard) == len(members) else buffer[heard]
                found.append(_logits(samples) if kind == "logits" else _rows(samples))
                places += [members[row] for row in heard]
                buffer.zero_()  # a site that the next step does not call has no outliers there
        for place, value in zip(places, torch.cat(found).tolist() if found else (), strict=True):
            self._last[place] = value
        return list(self._last)


def _values(x: Tensor | QTensor) -> Tensor:
    """Codes, or plain values, which may bring sums along."""
    return x.values if isinstance(x, QTensor) else x


def _copy(buffer: Tensor, rows: Tensor) -> None:
    """Evenly spread rows of [n, ...] into [ROWS, ...], or all where there are fewer."""
    step = len(rows) // ROWS
    if step == 0:
        buffer[: len(rows)].copy_(rows)
    else:
        first, *others = rows.stride()
        buffer.copy_(rows.as_strided(buffer.shape, (step * first, *others)))


def _rows(x: Tensor) -> Tensor:
    """[n, ROWS, K] -> [n]; `x` is used up.

    Everything happens in place: temporaries of this size are fresh pages from the system at every step, and on a CPU those cost
    ten times the arithmetic. The few large values count as zeros among the others.
    """
    most = x.abs_().amax(-1, keepdim=True)
    x.div_(most.clamp_min(1e-30))
    energy = torch.linalg.vector_norm(x, dim=-1).square_()
    torch.threshold_(x, 0.5, 0.0)  # what is left are the few large values
    energy -= torch.linalg.vector_norm(x, dim=-1).square_()
    wide: Tensor = (x.shape[-1] > CREST**2 * energy) & (most.squeeze(-1) > 0)
    return wide.float().mean(-1)


def _logits(x: Tensor) -> Tensor:
    """[n, 2, ROWS, H, d] -> [n]."""
    q, k = x[:, 0], x[:, 1] - x[:, 1].mean(1, keepdim=True)
    step_q, step_k = (t.abs().amax((1, 3), keepdim=True).squeeze(-1) / 127.0 for t in (q, k))  # [n, 1, H]
    noise_q = q.square().sum(-1) * step_k.square()  # [n, ROWS, H]
    noise_k = k.square().sum(-1) * step_q.square()
    variance = (noise_q[:, :, None] + noise_k[:, None]) / (12.0 * x.shape[-1])
    return (variance > LOGIT_ERROR**2).float().mean((1, 2, 3))
