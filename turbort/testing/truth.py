"""What is true: the unquantised reference in fp64 on the CPU, and the reference at a precision beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from turbort.op import OpSpec
from turbort.testing.compare import as_float64
from turbort.testing.values import leaves, widened

_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CASTS = frozenset({torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16})


class Exact(TorchFunctionMode):
    """While active, every cast to a narrower float and every float allocation becomes fp64.

    References take their statistics in fp32 by name; under this mode the same code computes in fp64.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _CASTS:
            return torch.Tensor.double(args[0])
        if kwargs.get("dtype") in _NARROW:
            kwargs["dtype"] = torch.float64
        if func is torch.Tensor.to:
            args = tuple(torch.float64 if isinstance(arg, torch.dtype) and arg in _NARROW else arg for arg in args)
        return func(*args, **kwargs)


def truth(spec: OpSpec, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The outputs of `spec` for these inputs in fp64, with nothing quantised.

    An op that must be told its output's scheme (`quantize`) hands its first argument over, so that is its truth.
    A sparse op is judged against itself: the blocks are those that the reference chooses in the given dtype,
    because another choice is another function and not an error.
    """
    emit = spec.signature.parameters.get("emit")
    if emit is not None and emit.default is emit.empty:
        return [as_float64(next(iter(kwargs.values())))]
    run = _SPARSE[spec.name](kwargs) if spec.name in _SPARSE else lambda exact: spec.reference(**exact)
    with torch.no_grad(), Exact():
        output = run(widened(dict(kwargs), torch.float64))
    return [as_float64(leaf) for _, leaf in leaves(output)]


def _sla(given: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    from turbort.ops import sla
    from turbort.ops.block_map import block_map
    from turbort.ops.sla_sparse import sparse_attention

    block = given.get("block", (64, 128))
    chosen = block_map(given["q"], given["k"], given["topk"], block)

    def run(exact: Mapping[str, Any]) -> Any:
        q, k, v = (exact[name] for name in "qkv")
        linear = torch.nn.functional.linear(sla.linear_branch(q, k, v), exact["proj_weight"], exact["proj_bias"])
        return sparse_attention(q, k, v, chosen, block, None) + linear

    return run


_SPARSE: Mapping[str, Callable[[Mapping[str, Any]], Callable[[Mapping[str, Any]], Any]]] = {"sla_attention": _sla}
