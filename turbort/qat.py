"""Quantisation-aware training: differentiable stand-ins for quantised ops, and binding them to a model's call sites.

The forward pass rounds exactly what the kernels of a precision round: codes are those of `turbort.quant.quantize` bit for bit, so
a linear differs from the integer kernel only by the order in which float32 sums are added, and an attention returns the integer
reference's own values. The gradient is that of the float op at the rounded operands (straight-through estimator).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from turbort.errors import InputError, unknown
from turbort.op import slots
from turbort.ops import attention, linear, sla_attention
from turbort.ops.attention import dense
from turbort.ops.attention_int8 import K_ROWS, Q_ROWS, quantise_rows, quantise_v, smooth
from turbort.precision import PRECISIONS
from turbort.quant.fake import fake_quant, straight_through


def fake_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    precision: str,
    activation: str | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    tile: int = 8,
    mask: Tensor | None = None,
) -> Tensor:
    """`turbort.ops.linear` at a linear precision, with gradients for every tensor; arguments as there.

    `tile` and `mask` are those of block-sparse weights: dropped tiles stay zero and get no gradient.
    """
    named = _known(precision, "linear")
    assert named.weight_scheme is not None  # every linear precision has one
    dtype = x.dtype
    rounded = fake_quant(weight.to(torch.float32), named.weight_scheme, tile=tile, mask=mask)
    if named.emit:
        # In float32: a 16-bit copy of code times scale would be rounded once more, which no kernel does.
        x = fake_quant(x.to(torch.float32), named.emit)
    else:
        rounded = rounded.to(dtype)
    y: Tensor = linear(x, rounded, bias, activation=activation, residual=residual, gate=gate)
    return y if residual is not None else y.to(dtype)


def fake_attention(q: Tensor, k: Tensor, v: Tensor, *, precision: str) -> Tensor:
    """`turbort.ops.attention` at `int8` or `int8-fp8`: its values, and the gradient of softmax attention on rounded operands."""
    _known(precision, "attention")
    soft = dense(*_rounded(q, k, v, precision, Q_ROWS, K_ROWS))
    with torch.no_grad():
        exact = attention(q, k, v, precision=precision)
    return straight_through(soft, exact)


def fake_sla_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    *,
    precision: str,
    topk: float,
    block: tuple[int, int] = (64, 128),
) -> Tensor:
    """`turbort.ops.sla_attention` at `int8` or `int8-fp8`: its values, and the gradient of its float form.

    The sparse branch's gradient is taken at the unrounded operands: which blocks it sees depends on them.
    """
    _known(precision, "attention")
    soft = sla_attention(q, k, v, proj_weight, proj_bias, topk=topk, block=block)
    with torch.no_grad():
        exact = sla_attention(q, k, v, proj_weight, proj_bias, topk=topk, block=block, precision=precision)
    return straight_through(soft, exact)


FAKES = {"linear": fake_linear, "attention": fake_attention, "sla_attention": fake_sla_attention}


def bind_fake(model: nn.Module, precisions: Mapping[str, str]) -> list[str]:
    """Let call sites of a float model compute as the kernels of a precision would, differentiably; the others stay as they are.

    `precisions` maps paths of call sites (`blocks.0.ffn.0.op`, with or without `dit/`) to precisions, as a plan has them; float
    precisions are passed over. Returns the sites that changed. Raises InputError for a path that the model lacks, or a
    precision that its op does not have.
    """
    found = slots(model)
    changed = []
    for path, precision in precisions.items():
        name = path.removeprefix("dit/")
        if name not in found:
            raise InputError(
                f"the model has no call site {path}", tried=[f"it has {len(found)}, such as {next(iter(found), '')}"]
            )
        if precision not in PRECISIONS or PRECISIONS[precision].kind == "float":
            continue
        slot = found[name]
        if precision not in slot.op.precisions or slot.op.name not in FAKES:
            raise InputError(
                f"{slot.op.name} ({path}) is not computed at {precision}", tried=[f"it has {', '.join(slot.op.precisions)}"]
            )
        function: Any = FAKES[slot.op.name]
        slot.bind(partial(function, precision=precision), provider="fake", precision=precision)
        changed.append(name)
    return changed


def _rounded(q: Tensor, k: Tensor, v: Tensor, precision: str, q_rows: int, k_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, smoothed k and v as the products see them, float32 [B, L, H, d]."""

    def rows(x: Tensor, count: int) -> Tensor:
        codes, scales = quantise_rows(x.detach().transpose(1, 2), count)
        return straight_through(x.to(torch.float32), (codes * scales).transpose(1, 2))

    return rows(q, q_rows), rows(smooth(k), k_rows), straight_through(v.to(torch.float32), quantise_v(v.detach(), precision))


def _known(precision: str, kind: str) -> Any:
    names = [row.name for row in PRECISIONS.values() if row.kind == kind]
    if precision not in names:
        raise unknown(f"{kind} precision", precision, names)
    return PRECISIONS[precision]
