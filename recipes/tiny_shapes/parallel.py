"""Training on several devices of one host: one process each, started by torchrun; every process works on its own data.

    torchrun --standalone --nproc-per-node 2 -m recipes.tiny_shapes.vae_train

Gradients are averaged in `Optimisers.step`, weights start as process 0 has them, and process 0 alone writes files. Clocks
differ between processes, so whatever depends on time is decided by process 0 and told to the others. Without torchrun all
of this does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
SEED_STEP = 7_368_787  # between the seeds of two processes

_control: list[Any] = []  # the group for numbers and objects of the host; gloo, so that asking never waits for the device


def start(device: str) -> torch.device:
    """Join the other processes, if there are any; returns this process's device."""
    if world() == 1:
        return torch.device(device)
    local = int(os.environ.get("LOCAL_RANK", rank()))
    own = torch.device("cuda", local) if device == "cuda" else torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    if not _control:
        _control.append(dist.new_group(backend="gloo"))
    return own


def finish() -> None:
    """Leave the group; call it before the process ends."""
    if dist.is_initialized():
        dist.barrier(group=_control[0])
        _control.clear()
        dist.destroy_process_group()


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def lead() -> bool:
    """Whether this process writes files and talks."""
    return rank() == 0


def per_process(total: int, least: int = 1) -> int:
    """This process's part of a batch or pool of `total`; at least `least`, below which a device would idle."""
    return max(least, -(-total // world()))


def own_seed(seed: int) -> int:
    """A seed that differs between processes."""
    return seed + SEED_STEP * rank()


def agree(value: T) -> T:
    """What process 0 passed."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_control[0])
    return box[0]


def agree_number(value: float) -> float:
    """As `agree`, for one float; cheap enough for every step."""
    if world() == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(box, src=0, group=_control[0])
    return float(box)


def gather(rows: list[Any]) -> list[Any]:
    """The rows of all processes, interleaved as `split` dealt them out."""
    if world() == 1:
        return rows
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, rows, group=_control[0])
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def split(rows: list[T]) -> list[T]:
    """Every `world()`-th row, starting with row `rank()`."""
    return rows[rank() :: world()]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the values of process 0."""
    if world() > 1:
        _by_dtype([t.data for t in tensors], lambda flat: dist.broadcast(flat, src=0))


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their mean over all processes: one exchange for all of them."""
    if world() > 1:
        def mean(flat: Tensor) -> None:
            dist.all_reduce(flat)
            flat.div_(world())

        _by_dtype(list(tensors), mean)


def disagreement(tensors: Iterable[Tensor]) -> float:
    """Largest absolute difference to the values of process 0, over all processes."""
    if world() == 1:
        return 0.0
    tensors = list(tensors)
    copies = [t.detach().clone() for t in tensors]
    broadcast(copies)
    most = torch.stack([(a.detach() - b).abs().max().float() for a, b in zip(tensors, copies, strict=True)]).max()
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return float(most)


def barrier() -> None:
    """Wait for the others, so that files that process 0 wrote are there."""
    if world() > 1:
        dist.barrier(group=_control[0])


def _by_dtype(tensors: list[Tensor], exchange: Callable[[Tensor], None]) -> None:
    """Apply `exchange`, which works in place, to all tensors of a dtype at once."""
    for dtype in {t.dtype: None for t in tensors}:
        some = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in some])
        exchange(flat)
        parts = flat.split([t.numel() for t in some])
        torch._foreach_copy_(some, [part.view(t.shape) for part, t in zip(parts, some, strict=True)])
