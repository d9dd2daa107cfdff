"""A model's step as a torch graph: what executors that compile whole steps start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from turbort.op import Slot, counted


@dataclass(frozen=True, eq=False)
class Traced:
    """A step at one set of shapes.

    Attributes:
        graph: takes (list of the model's own tensors, list of the tensors among the arguments), returns flat outputs.
        structure: how the outputs hang together.
        calls: how often each call site ran while tracing.
        parameters: the model's own tensors by name.
    """

    graph: fx.GraphModule
    structure: pytree.TreeSpec
    calls: dict[str, int]
    parameters: dict[str, Tensor]


def trace(step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced:
    """Follow fake tensors through the step; nothing is computed and no call is counted."""
    parameters = dict(step.named_parameters()) | dict(step.named_buffers()) if isinstance(step, nn.Module) else {}
    leaves, form = pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    structure: list[pytree.TreeSpec] = []

    def run(own: list[Tensor], given: list[Tensor]) -> list[Tensor]:
        filled = list(leaves)
        for place, tensor in zip(places, given, strict=True):
            filled[place] = tensor
        arguments, named = pytree.tree_unflatten(filled, form)
        if isinstance(step, nn.Module):
            result = torch.func.functional_call(step, dict(zip(parameters, own, strict=True)), arguments, named)
        else:
            result = step(*arguments, **named)
        flat, spec = pytree.tree_flatten(result)
        structure.append(spec)
        return flat

    before = _counts(step)
    with torch.no_grad(), _own_caches(step):
        inputs = [leaves[place] for place in places]
        graph = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(list(parameters.values()), inputs)
    calls = {path: count - before[path] for path, count in _counts(step).items()}
    count_calls(step, {path: -count for path, count in calls.items()})
    return Traced(graph, structure[0], calls, parameters)


def count_calls(step: Any, calls: dict[str, int]) -> None:
    """Add to the counts of the step's call sites: a compiled program runs them unseen."""
    for path, slot in _slots(step).items():
        slot.calls += calls[path]


def key_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What one program is for: shapes, dtypes and plain values."""
    leaves, form = pytree.tree_flatten((args, kwargs))
    return form, tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in leaves)


def tensors_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments, in the order of `Traced.graph`."""
    return [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def shapes_of(args: tuple[Any, ...]) -> str:
    """The arguments in words."""
    return ", ".join("x".join(map(str, value.shape)) or "a scalar" for value in args if isinstance(value, Tensor))


def _slots(step: Any) -> dict[str, Slot]:
    return dict(counted(step)) if isinstance(step, nn.Module) else {}


def _counts(step: Any) -> dict[str, int]:
    return {path: slot.calls for path, slot in _slots(step).items()}


@contextmanager
def _own_caches(step: Any) -> Iterator[None]:
    """Give modules empty dictionaries for what they remember, and the old ones back: fake tensors must not stay."""
    ours = vars(nn.Module())
    kept = [
        (module, name, value)
        for module in (step.modules() if isinstance(step, nn.Module) else ())
        for name, value in vars(module).items()
        if type(value) is dict and name not in ours
    ]
    for module, name, _ in kept:
        vars(module)[name] = {}
    try:
        yield
    finally:
        for module, name, value in kept:
            vars(module)[name] = value
