"""One denoising step over several NPUs: tokens are spread over the ranks, and for self-attention the heads are.

Each rank holds L / n tokens of all heads. Two all-to-alls around self-attention turn that into all tokens of H / n heads and
back, so that every rank runs the plan's own attention kernel on whole sequences (DeepSpeed-Ulysses, arXiv 2309.14509).
Everything else in a block treats tokens one by one and needs no exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from turbort.errors import InputError
from turbort.op import slots


def tokens_to_heads(x: Tensor, group: Any = None) -> Tensor:
    """[B, L / n, H, d], this rank's tokens -> [B, L, H / n, d], this rank's heads."""
    ranks, (batch, length, heads, d) = dist.get_world_size(group), x.shape
    parts = x.view(batch, length, ranks, heads // ranks, d).permute(2, 0, 1, 3, 4).contiguous()
    return _exchanged(parts, group).permute(1, 0, 2, 3, 4).reshape(batch, ranks * length, heads // ranks, d)


def heads_to_tokens(y: Tensor, group: Any = None) -> Tensor:
    """[B, L, H / n, d] -> [B, L / n, H, d]; the inverse of `tokens_to_heads`."""
    ranks, (batch, length, heads, d) = dist.get_world_size(group), y.shape
    parts = y.reshape(batch, ranks, length // ranks, heads, d).permute(1, 0, 2, 3, 4).contiguous()
    return _exchanged(parts, group).permute(1, 2, 0, 3, 4).reshape(batch, length // ranks, ranks * heads, d)


def _exchanged(parts: Tensor, group: Any) -> Tensor:
    """Part r goes to rank r; the result's part r came from rank r."""
    got = parts.new_empty(parts.shape)
    dist.all_to_all_single(got, parts, group=group)
    return got


class SpreadStep:
    """A bound transformer whose ranks each compute L / n tokens; every rank returns the whole velocity.

    Raises InputError where the ranks divide neither the heads nor, at a call, the tokens.
    """

    def __init__(self, model: nn.Module, group: Any = None) -> None:
        self.model, self.group = model, group
        self.ranks, self.rank = dist.get_world_size(group), dist.get_rank(group)
        heads = int(model.config.heads)  # type: ignore[union-attr,arg-type]
        if heads % self.ranks:
            raise InputError(
                f"{self.ranks} NPUs do not divide the model's {heads} heads",
                fix=f"use one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)} NPUs",
            )
        for slot in slots(model).values():
            if slot.role == "attn.self":
                slot.fn = self._over_heads(slot.fn)
        parts: Any = model
        parts.patch_embedding.register_forward_hook(lambda _module, _inputs, h: self._mine(h, 1))
        parts.head.register_forward_hook(lambda _module, _inputs, out: self._whole(out))
        self._rope, parts.rope = parts.rope, self._my_rope
        self._embed_time, parts.embed_time = parts.embed_time, self._my_time

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def _over_heads(self, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def spread(q: Tensor, k: Tensor, v: Tensor, *weights: Tensor, **options: Any) -> Tensor:
            q, k, v = (tokens_to_heads(x, self.group) for x in (q, k, v))
            return heads_to_tokens(attend(q, k, v, *weights, **options), self.group)

        return spread

    def _mine(self, x: Tensor, axis: int) -> Tensor:
        """This rank's tokens of `x`, which has all of them along `axis`."""
        if x.shape[axis] % self.ranks:
            raise InputError(
                f"{self.ranks} NPUs do not divide {x.shape[axis]} tokens", fix="change --size or --frames, or use fewer NPUs"
            )
        return x.chunk(self.ranks, dim=axis)[self.rank].contiguous()

    def _whole(self, out: Tensor) -> Tensor:
        """[B, L / n, D] -> [B, L, D]."""
        every = out.new_empty((self.ranks, *out.shape))
        dist.all_gather_into_tensor(every, out.contiguous(), group=self.group)
        return every.transpose(0, 1).reshape(out.shape[0], -1, out.shape[-1])

    def _my_rope(self, *args: Any) -> tuple[Tensor, ...]:
        return tuple(self._mine(table, 0) for table in self._rope(*args))

    def _my_time(self, t: Tensor) -> tuple[Tensor, ...]:
        """A time per token is spread with its tokens; one time for all stays whole."""
        return tuple(x if x.shape[1] == 1 else self._mine(x, 1) for x in self._embed_time(t))
