"""Run by test_parallel in each of two processes: trains on its half of fixed batches and saves what became of the weights."""

from __future__ import annotations

import sys

import torch

from recipes.tiny_shapes import parallel
from recipes.tiny_shapes.optim import Optimisers


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 3))


def train(model: torch.nn.Module, shard: slice) -> torch.nn.Module:
    """Three steps of Muon (first kernel) and AdamW on its part of the same batches."""
    first = model[0].weight
    opt = Optimisers([first], [p for p in model.parameters() if p is not first], muon_lr=0.02, lr=0.01)
    g = torch.Generator().manual_seed(5)
    for _ in range(3):
        x, y = torch.randn(4, 3, 8, 8, generator=g), torch.randn(4, 4, 4, 4, generator=g)
        (model(x[shard]) - y[shard]).square().mean().backward()
        opt.step(1.0)
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    parallel.start("cpu")
    rank = parallel.rank()
    model = train(network(seed=rank), slice(2 * rank, 2 * rank + 2))  # different seeds: process 0 must win
    apart = parallel.disagreement(model.parameters())
    rows = parallel.gather([f"{i}" for i in parallel.split(list(range(5)))])
    told = parallel.agree({"from": rank}), parallel.agree_number(float(rank))
    torch.save({"state": model.state_dict(), "apart": apart, "rows": rows, "told": told}, f"{sys.argv[1]}/{rank}.pt")
    parallel.finish()
