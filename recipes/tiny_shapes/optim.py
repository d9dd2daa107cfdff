"""Optimisers, learning-rate schedule and weight averages.

Matrices of transformer blocks and kernels of convolutions (as matrices [out, in * taps]) use Muon: momentum, then the
nearest orthogonal matrix by Newton-Schulz iteration, scaled to the step size of AdamW. It needs about half the samples of
AdamW on networks of this size, and batching equal shapes makes it cheap: 80 matrices take three batched chains of
products. Everything else uses AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from recipes.tiny_shapes import parallel

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Newton-Schulz quintic of Jordan's Muon


def orthogonalise(m: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of each matrix [N, R, C], singular values within 0.7..1.2."""
    a, b, c = COEFFICIENTS
    flip = m.shape[1] > m.shape[2]
    x = m.transpose(1, 2) if flip else m
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(torch.bfloat16 if m.is_cuda else torch.float32)
    for _ in range(steps):
        g = x @ x.transpose(1, 2)
        x = a * x + (b * g + c * g @ g) @ x
    return (x.transpose(1, 2) if flip else x).to(m.dtype)


class Muon(torch.optim.Optimizer):
    """Muon over matrices and convolution kernels, all of one shape at once."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    found_inf: Tensor | None = None  # 1 where the step must be skipped, as torch's fused optimisers have it

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(tuple(p.shape), []).append(p)
            for shape, params in by_shape.items():
                grad = torch.stack([p.grad.flatten(1) for p in params])
                state = self.state[params[0]]
                moment = state.setdefault("momentum", torch.zeros_like(grad))
                if self.found_inf is not None:
                    grad = torch.where(self.found_inf > 0, moment, grad)
                moment.lerp_(grad, 1 - group["momentum"])
                update = orthogonalise(torch.lerp(grad, moment, group["momentum"]))  # Nesterov
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                scale = 0.2 * math.sqrt(max(update.shape[1:]))
                torch._foreach_add_(params, [u.view(shape) for u in update.unbind(0)], alpha=-group["lr"] * scale)


class Optimisers:
    """Muon and AdamW side by side, with one schedule."""

    def __init__(
        self, matrices: list[Tensor], rest: list[Tensor], *, muon_lr: float, lr: float,
        betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.01, clip: float = 1.0, keep_grads: bool = False,
    ) -> None:  # fmt: skip
        """keep_grads: gradients stay in one place, where recorded steps (`captured`) add to them."""
        fused = all(p.is_cuda for p in rest)
        self.all = matrices + rest
        self.clip, self.keep_grads = clip, keep_grads
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
        ]
        if matrices:
            self.parts.append(Muon(matrices, muon_lr, weight_decay=weight_decay))
        self.peak = [p.param_groups[0]["lr"] for p in self.parts]
        parallel.broadcast(self.all)
        if keep_grads:
            for p in self.all:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()

    def step(self, scale: float) -> Tensor:
        """One update at `scale` times the peak rates with the mean gradient of all processes; returns its norm.

        Skipped when a gradient is not finite.
        """
        parallel.average(p.grad for p in self.all if p.grad is not None)
        norm = nn.utils.clip_grad_norm_(self.all, self.clip)
        bad = (~torch.isfinite(norm)).float()
        for part, peak in zip(self.parts, self.peak, strict=True):
            if norm.is_cuda:
                part.found_inf = bad  # type: ignore[attr-defined]
            elif bad:
                continue
            part.param_groups[0]["lr"] = peak * scale
            part.step()
        if self.keep_grads:
            torch._foreach_zero_([p.grad for p in self.all])
        else:
            for p in self.all:
                p.grad = None
        return norm

    def state(self) -> list[Any]:
        return [p.state_dict() for p in self.parts]

    def load(self, state: list[Any]) -> None:
        for part, saved in zip(self.parts, state, strict=True):
            part.load_state_dict(saved)


def split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(matrices of transformer blocks, everything else)."""
    matrices = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2 and "proj_l" not in n]
    held = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if id(p) not in held]


def split_kernels(model: nn.Module, keep: tuple[str, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """(convolution kernels, everything else); parameters whose names start with one of `keep` count as the latter."""
    kernels = [p for n, p in model.named_parameters() if p.ndim >= 4 and p[0].numel() > 1 and not n.startswith(keep)]
    held = {id(p) for p in kernels}
    return kernels, [p for p in model.parameters() if id(p) not in held]


def schedule(step: int, done: float, *, warmup: int = 100, hold: float = 0.5) -> float:
    """Linear warm-up over `warmup` steps, flat until the share `hold` of the time is over, then a half cosine to 2 %."""
    rise = min(1.0, (step + 1) / warmup)
    if done <= hold:
        return rise
    fall = min(1.0, (done - hold) / (1 - hold))
    return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))


class Ema:
    """Exponential moving average of a model's parameters, with a decay that grows to `decay`."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.source = list(model.parameters())
        self.names = [n for n, _ in model.named_parameters()]
        self.decay = decay
        self.count = 0
        self.average = [p.detach().clone() for p in self.source]

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.source], 1 - decay)

    def state(self) -> dict[str, Tensor]:
        return {n: a.clone() for n, a in zip(self.names, self.average, strict=True)}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        for n, a in zip(self.names, self.average, strict=True):
            a.copy_(state[n])
        self.count = 1_000_000
