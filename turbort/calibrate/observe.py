"""Watching call sites while the unquantised model runs forward and backward.

For an error d at a site's output the model's output moves by J d, J the Jacobian in between. With random signs v over the output
and g = J^T v, which one backward pass gives for every site at once, E[(sum_i g_i d_i)^2] = |J d|^2 (Hutchinson). One such number
is noisy, so the sum is squared per channel: |J d|^2 is about sum_n (sum_m g_mn d_mn)^2, m over tokens, n over channels. It keeps
what matters, that the error of one row of weights is alike in all tokens, and drops products of different channels, whose
rounding errors have nothing to do with each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from turbort.op import Slot
from turbort.ops.linear import linear_w4a8
from turbort.precision import PRECISIONS
from turbort.quant.bsq import to_tiles
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize
from turbort.site_record import BINS, LOWEST, OUTLIER, Harm, Moments, SiteRecord, StepRecord

CACHE_BYTES = 8 << 30
"""Quantised weights kept between calls; what does not fit is quantised again each time."""


def moments(x: Tensor) -> Moments:
    """Statistics of one tensor [..., K]; near-zero values are judged against the largest of their row."""
    values = x.detach().to(torch.float32)
    size = values.abs()
    limit = OUTLIER * values.square().mean().sqrt()
    smallest = size.amax(dim=-1, keepdim=True) * (0.5 / 127.0)
    exponents = size.clamp_min(2.0 ** (LOWEST - 1)).log2().floor().sub_(LOWEST).clamp_(0, BINS - 1)
    sums = torch.stack([values.sum(), values.square().sum(), values.min(), values.max()]).tolist()
    counts = torch.stack([(size > limit).sum(), (size <= smallest).sum()]).tolist()
    bins = torch.bincount(exponents.flatten().to(torch.int64), minlength=BINS).tolist()
    total, square, low, high = sums
    outliers, zeros = counts
    return Moments(values.numel(), total, square, low, high, outliers, zeros, tuple(bins))


def weight_sparsity(weight: Tensor) -> tuple[float, float]:
    """Share of 8x8 tiles, and of 64x64 blocks, that are all zero."""
    tiles = to_tiles(weight.flatten(1), 8).eq(0).all(dim=-1).all(dim=-1)
    blocks = to_tiles(tiles.logical_not().to(torch.float32), 8).eq(0).all(dim=-1).all(dim=-1)
    return float(tiles.float().mean()), float(blocks.float().mean())


def felt(slope: Tensor, delta: Tensor) -> float:
    """sum over samples and channels of (sum over tokens of slope * delta)^2; both [B, ..., channels]."""
    return float((slope * delta).flatten(1, -2).sum(dim=1).square().sum())


class Weights:
    """Quantised forms of weights by site and scheme, kept while there is room."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._left = limit
        self._kept: dict[tuple[str, str], QTensor] = {}

    def get(self, path: str, weight: Tensor, scheme: str) -> QTensor:
        """`weight` in `scheme`, remembering the dtype of the original."""
        found = self._kept.get((path, scheme))
        if found is None:
            made = quantize(weight.detach().to(torch.float32).flatten(1), scheme)
            found = QTensor(made.scheme, made.values, made.scales, weight.dtype, made.mask, made.tile)
            size = found.values.nbytes + found.scales.nbytes
            if size <= self._left:
                self._left -= size
                self._kept[path, scheme] = found
        return found


class Watch:
    """What all sites share: the sampling step that runs, the energy of the model's output, the random signs, and whether E[x x^T]
    of linears is kept."""

    def __init__(self, seed: int = 0, *, moments: bool = False) -> None:
        self.moments = moments
        self.step = 0
        self.energy = math.inf
        self.felt: dict[str, float] = {}
        """Errors that the outputs of the running step felt, by precision, over all sites and calls since it was last emptied."""
        self._generator = torch.Generator().manual_seed(seed)

    def backward(self, out: Tensor) -> None:
        """Send random signs back from the model's output; every site's hook runs. The graph stays usable."""
        self.energy = max(float(out.detach().to(torch.float32).square().sum()), 1e-30)
        signs = torch.randint(0, 2, out.shape, generator=self._generator).mul_(2).sub_(1)
        torch.autograd.backward([out], [signs.to(out.device, out.dtype)], retain_graph=True)


class Site:
    """One call site: runs its reference, and compares each candidate precision with it once the gradient is there."""

    def __init__(self, path: str, slot: Slot, candidates: tuple[str, ...], weights: Weights, watch: Watch) -> None:
        self.path, self.slot, self.candidates, self.weights, self.watch = path, slot, candidates, weights, watch
        self.sparsity: tuple[float, float] | None = None
        self.moments: Tensor | None = None
        self.rows = 0
        self.steps: dict[int, StepRecord] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self.slot.op.reference(*args, **kwargs)
        given = self.slot.op.signature.bind(*args, **kwargs).arguments
        first = next((value for value in given.values() if isinstance(value, Tensor)), None)
        if first is not None:
            self._add(StepRecord(0 if self.candidates else 1, moments(first)))
        if not self.candidates:
            return out
        if self.sparsity is None and "weight" in given:
            self.sparsity = weight_sparsity(given["weight"])
        if self.watch.moments and first is not None and "weight" in given:
            self._collect(first.detach())
        frozen = {name: value.detach() if isinstance(value, Tensor) else value for name, value in given.items()}
        kept = out.detach()
        out = out if out.requires_grad else out.requires_grad_()
        out.register_hook(lambda gradient: self._judge(frozen, kept, gradient))
        return out

    def _collect(self, x: Tensor) -> None:
        """Add x^T x."""
        rows = x.flatten(0, -2).to(torch.float32)
        self.moments = rows.t() @ rows if self.moments is None else self.moments.addmm_(rows.t(), rows)
        self.rows += len(rows)

    def _add(self, record: StepRecord) -> None:
        step = self.watch.step
        self.steps[step] = self.steps[step] + record if step in self.steps else record

    @torch.no_grad()
    def _judge(self, given: Mapping[str, Any], out: Tensor, gradient: Tensor) -> None:
        exact, slope = out.to(torch.float32), gradient.to(torch.float32)
        residual = given.get("residual")
        own = exact if residual is None else exact - residual.to(torch.float32)
        signal = float(own.square().sum())
        harms = {}
        for precision in self.candidates:
            delta = self._at(precision, given).to(torch.float32) - exact
            harm = Harm(float(delta.square().sum()), signal, felt(slope, delta) / self.watch.energy)
            harms[precision] = harm
            self.watch.felt[precision] = self.watch.felt.get(precision, 0.0) + harm.felt
        self._add(StepRecord(1, Moments(), harms))

    def _at(self, precision: str, given: Mapping[str, Any]) -> Tensor:
        """The site's output with the reference at `precision`."""
        result: Tensor
        scheme = PRECISIONS[precision].weight_scheme
        if scheme is None:
            result = self.slot.op.reference(**given, precision=precision)
            return result
        changed = {**given, "weight": self.weights.get(self.path, given["weight"], scheme)}
        result = (linear_w4a8 if precision == "w4a8" else self.slot.op.reference)(**changed)
        return result

    def record(self) -> SiteRecord:
        """What was seen, ready for a document."""
        return SiteRecord(self.slot.op.name, self.slot.role, *(self.sparsity or (0.0, 0.0)), dict(self.steps))
