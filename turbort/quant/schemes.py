"""Every quantisation scheme by name: `quantize(x, scheme)` and `dequantize(q)`."""

from __future__ import annotations

import torch
from torch import Tensor

from turbort.errors import InputError, unknown
from turbort.precision import SUMS
from turbort.quant import block128, bsq, fp8, int4, int8
from turbort.quant.qtensor import QTensor
from turbort.quant.sums import block_sums, sums_rows

SCHEMES = (
    "int8-token",
    "int8-channel",
    "int8-block128",
    "fp8-token",
    "fp8-channel",
    "int4-group128",
    "bsq8",
    "bsq4",
)
TIME_SCHEMES = ("int8-token", "fp8-token")
"""Schemes with a scale per token, which tokens of the same place in successive frames may share."""


def encode(x: Tensor, scheme: str, *, tile: int = 8, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, float32 scales and tile mask of `x` in `scheme`; see the module of each family for shapes.

    `sums-64` and `sums-128` (`turbort.precision.SUMS`) leave x [B, L, H, d] as it is; their scales are its sums over blocks of
    tokens, float32 [B, n, H, d].
    """
    if scheme == "int8-token":
        return *int8.quantize_rows(x, int8.TOKEN_FLOOR), None
    if scheme == "int8-channel":
        return *int8.quantize_rows(x, int8.CHANNEL_FLOOR), None
    if scheme == "int8-block128":
        return *block128.quantize_blocks(x), None
    if scheme in ("fp8-token", "fp8-channel"):
        return *fp8.quantize_rows(x), None
    if scheme == "int4-group128":
        return *int4.quantize_groups(x), None
    if scheme in ("bsq8", "bsq4"):
        return bsq.quantize_tiles(x, tile, int(scheme[-1]), mask)
    if scheme in SUMS:
        return x, block_sums(x.to(torch.float32), sums_rows(scheme))[0], None
    raise unknown("quantisation scheme", scheme, SCHEMES)


def quantize_time(x: Tensor, scheme: str, frames: int) -> QTensor:
    """`x` [B, frames * P, K] in a token scheme whose scale is shared along time: one per place p, equal in every frame.

    s[b, p] = max(amax over frames t and inputs k of |x[b, t * P + p, k]|, 1e-8) / top, top = 127 (`int8-token`) or 448
    (`fp8-token`). The result is a QTensor of that scheme whose scales [B, frames * P, 1] repeat with period P, so every kernel
    that takes the scheme takes it. Raises InputError for another scheme, or tokens that are no multiple of `frames`.
    """
    if scheme not in TIME_SCHEMES:
        raise unknown("quantisation scheme with scales shared along time", scheme, TIME_SCHEMES)
    if x.ndim != 3 or frames < 1 or x.shape[1] % frames:
        raise InputError(
            f"scales cannot be shared over {frames} frames: x is {'x'.join(map(str, x.shape))}",
            tried=["it takes [B, L, K] with L a multiple of the frames"],
        )
    wide = x.to(torch.float32)
    places = x.shape[1] // frames
    top = 127.0 if scheme == "int8-token" else fp8.E4M3_MAX
    most = wide.abs().amax(dim=-1, keepdim=True).view(x.shape[0], frames, places, 1).amax(dim=1, keepdim=True)
    # A copy per frame: kernels read one scale a row.
    scales = (most.clamp_min(int8.TOKEN_FLOOR) / top).repeat(1, frames, 1, 1).view(x.shape[0], -1, 1)
    codes = wide / scales
    values = codes.round().to(torch.int8) if scheme == "int8-token" else fp8.to_e4m3(codes)
    return QTensor(scheme, values, scales, x.dtype)


def decode(values: Tensor, scales: Tensor, scheme: str, *, tile: int = 8) -> Tensor:
    """The float32 values that codes and scales of `scheme` stand for."""
    if scheme in ("int8-token", "int8-channel", "fp8-token", "fp8-channel"):
        return int8.dequantize_rows(values, scales)
    if scheme == "int8-block128":
        return block128.dequantize_blocks(values, scales)
    if scheme == "int4-group128":
        return int4.dequantize_groups(values, scales)
    if scheme in ("bsq8", "bsq4"):
        return bsq.dequantize_tiles(values, scales, tile)
    if scheme in SUMS:
        return values.to(torch.float32)
    raise unknown("quantisation scheme", scheme, SCHEMES)


def quantize(x: Tensor, scheme: str, *, tile: int = 8, mask: Tensor | None = None) -> QTensor:
    """`x` in `scheme`, remembering `x.dtype`.

    `tile` (4 or 8) and `mask` (bool per tile, which to keep) are used by block-sparse schemes only.
    Raises InputError for a scheme that does not exist.
    """
    values, scales, kept = encode(x, scheme, tile=tile, mask=mask)
    return QTensor(scheme, values, scales, x.dtype, kept, 0 if kept is None else tile)


def dequantize(q: QTensor, dtype: torch.dtype | None = None) -> Tensor:
    """The float values that `q` stands for, in `dtype` (default `q.dtype`)."""
    return decode(q.values, q.scales, q.scheme, tile=q.tile).to(dtype or q.dtype)
