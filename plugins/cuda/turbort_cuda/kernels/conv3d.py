"""Causal 3x3x3 convolutions as one implicit matrix product on tensor cores; nothing is unfolded in memory.

    out[t, r, c, o] = bias[o] + sum over kt, kh, kw, i of x[t + kt, r + kh - 1, c + kw - 1, i] * w[kt, kh, kw, o, i]

x [B, T + 2, H, W, C] has the past in front (`room`). A program makes BH x BW pixels of one frame and N1 + N2 outputs: widths of
tiles are powers of two, and 96 = 64 + 32 and 192 = 128 + 64 lose nothing. It walks over 27 taps and C in chunks of K; both
operands of a step share their tile of x. Tiles come through tensor descriptors, whose zeros outside the frame are the padding.

GROUP: that many frames at once. Two frames see four frames of x, two of them both, so 36 tiles of x serve where 54 would. The
weights of a group lie side by side, [G + 2, 3, 3, G O, C], with zeros where a frame does not see: for two frames a third more
products, (G + 2) G against 3 G. It pays where tiles of x, not products, bound: 96 outputs, which pad to 128 alone and fill 192
in pairs, and an image's 3, which fit into one tile of 16 four times. SWAP: outputs are the rows of the product and pixels its
columns; on Hopper one instruction then covers 256 pixels and reads less from shared memory per product, which bounds narrow
convolutions. Sums are float32 in a fixed order, so the bytes depend on the configuration and on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from turbort.errors import InputError
from turbort.ops.conv import Size3
from turbort_cuda.configs import conv_class
from turbort_cuda.kernels.kept import kept
from turbort_cuda.kernels.room import joined
from turbort_cuda.launch import ALIGNMENT, capability, multiprocessors, on
from turbort_cuda.tuning import pick

SHAPE = (3, 3, 3)


@triton.jit
def pixels(
    x, frame, row, col, channel, H, W, C, BH: tl.constexpr, BW: tl.constexpr, K: tl.constexpr, TMA: tl.constexpr
):  # fmt: skip
    """[BH * BW, K] values of one frame from (row, col, channel) on, zeros outside it."""
    if TMA:
        return tl.reshape(x.load([frame, row, col, channel]), (BH * BW, K))
    else:
        place = tl.arange(0, BH * BW)
        rows = row + place // BW
        cols = col + place % BW
        channels = channel + tl.arange(0, K)
        inside = (rows >= 0) & (rows < H) & (cols >= 0) & (cols < W)
        start = ((frame.to(tl.int64) * H + rows) * W + cols) * C
        return tl.load(x + start[:, None] + channels[None, :], mask=inside[:, None] & (channels < C)[None, :], other=0.0)


@triton.jit
def taps(w, tap, first, channel, N, C, PART: tl.constexpr, K: tl.constexpr, TMA: tl.constexpr):
    """[PART, K] weights of one tap, zeros outside."""
    if TMA:
        return tl.reshape(w.load([tap, first, channel]), (PART, K))
    else:
        outputs = first + tl.arange(0, PART)
        channels = channel + tl.arange(0, K)
        start = (tap * N + outputs) * C
        return tl.load(w + start[:, None] + channels[None, :], mask=(outputs < N)[:, None] & (channels < C)[None, :], other=0.0)


@triton.jit
def product(acc, a, w, SWAP: tl.constexpr):
    """acc + a w^T, or its transpose."""
    if SWAP:
        return tl.dot(w, a.T, acc)
    else:
        return tl.dot(a, w.T, acc)


@triton.jit
def store(
    acc, bias, out, first, image, time, row, col, T, H, W, OUTPUTS, N,
    BH: tl.constexpr, BW: tl.constexpr, PART: tl.constexpr, SWAP: tl.constexpr, HAS_BIAS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add the bias and store columns [first, first + PART): the outputs of frame `time`, in a group those of the next frames."""
    y = acc.T if SWAP else acc
    place = tl.arange(0, BH * BW)
    rows = row + place // BW
    cols = col + place % BW
    columns = first + tl.arange(0, PART)
    # The last frames of a group may lie past the end.
    inside = ((rows < H) & (cols < W))[:, None] & (columns < tl.minimum(N, (T - time) * OUTPUTS))[None, :]
    outputs = columns
    frames = image.to(tl.int64) * T + time
    start = ((frames * H + rows) * W + cols) * OUTPUTS
    if GROUP > 1:
        later = columns // OUTPUTS
        outputs = columns - later * OUTPUTS
        target = out + start[:, None] + (later * (tl.cast(H, tl.int64) * W * OUTPUTS) + outputs)[None, :]
    else:
        target = out + start[:, None] + outputs[None, :]
    if HAS_BIAS:
        y += tl.load(bias + outputs, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    tl.store(target, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def one_tile(
    tile, x, x_tail, w1, w1_tail, w2, w2_tail, bias, out, T, H, W, C, OUTPUTS, N,
    BH: tl.constexpr, BW: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, TAIL: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr, GROUP: tl.constexpr, SWAP: tl.constexpr, HAS_BIAS: tl.constexpr,
    TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile; N = GROUP * OUTPUTS outputs from C inputs in CHUNKS of K, and TAIL more.

    Tiles of one row of tiles follow each other, then the next frame's: what programs that run together read stays in L2.
    """
    tiles_n = tl.cdiv(N, N1 + N2)
    tiles_w = tl.cdiv(W, BW)
    groups = tl.cdiv(T, GROUP)
    first = (tile % tiles_n) * (N1 + N2)
    tile //= tiles_n
    col = (tile % tiles_w) * BW
    tile //= tiles_w
    time = (tile % groups) * GROUP
    tile //= groups
    tiles_h = tl.cdiv(H, BH)
    row = (tile % tiles_h) * BH
    image = tile // tiles_h
    frame = image * (T + 2) + time
    # Where T is no multiple of GROUP, the frames past the end are computed from this one and never stored.
    last = image * (T + 2) + T + 1
    acc1 = tl.zeros((N1, BH * BW) if SWAP else (BH * BW, N1), dtype=tl.float32)
    if N2:
        acc2 = tl.zeros((N2, BH * BW) if SWAP else (BH * BW, N2), dtype=tl.float32)
    for step in tl.range(0, 9 * (GROUP + 2) * CHUNKS, num_stages=STAGES):
        tap = step // CHUNKS
        channel = (step % CHUNKS) * K
        here = frame + tap // 9
        if GROUP > 1:
            here = tl.minimum(here, last)
        top = row + (tap // 3) % 3 - 1
        left = col + tap % 3 - 1
        a = pixels(x, here, top, left, channel, H, W, C, BH, BW, K, TMA)
        acc1 = product(acc1, a, taps(w1, tap, first, channel, N, C, N1, K, TMA), SWAP)
        if N2:
            acc2 = product(acc2, a, taps(w2, tap, first + N1, channel, N, C, N2, K, TMA), SWAP)
        if TAIL:
            b = pixels(x_tail, here, top, left, K * CHUNKS, H, W, C, BH, BW, TAIL, TMA)
            acc1 = product(acc1, b, taps(w1_tail, tap, first, K * CHUNKS, N, C, N1, TAIL, TMA), SWAP)
            if N2:
                acc2 = product(acc2, b, taps(w2_tail, tap, first + N1, K * CHUNKS, N, C, N2, TAIL, TMA), SWAP)
    store(acc1, bias, out, first, image, time, row, col, T, H, W, OUTPUTS, N, BH, BW, N1, SWAP, HAS_BIAS, GROUP)
    if N2:
        store(acc2, bias, out, first + N1, image, time, row, col, T, H, W, OUTPUTS, N, BH, BW, N2, SWAP, HAS_BIAS, GROUP)


@triton.jit
def conv3d_kernel(
    x, x_tail, w1, w1_tail, w2, w2_tail, bias, out, tiles, T, H, W, C, OUTPUTS, N,
    BH: tl.constexpr, BW: tl.constexpr, K: tl.constexpr, CHUNKS: tl.constexpr, TAIL: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr, GROUP: tl.constexpr, SWAP: tl.constexpr, HAS_BIAS: tl.constexpr,
    TMA: tl.constexpr, STAGES: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """One tile a program; FLATTEN: every program walks over tiles, and loads of the next begin before the last is stored."""
    if FLATTEN:
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            one_tile(
                tile, x, x_tail, w1, w1_tail, w2, w2_tail, bias, out, T, H, W, C, OUTPUTS, N,
                BH, BW, K, CHUNKS, TAIL, N1, N2, GROUP, SWAP, HAS_BIAS, TMA, STAGES,
            )  # fmt: skip
    else:
        one_tile(
            tl.program_id(0), x, x_tail, w1, w1_tail, w2, w2_tail, bias, out, T, H, W, C, OUTPUTS, N,
            BH, BW, K, CHUNKS, TAIL, N1, N2, GROUP, SWAP, HAS_BIAS, TMA, STAGES,
        )  # fmt: skip


def laid_out(weight: Tensor, dtype: torch.dtype, group: int) -> Tensor:
    """[O, C, 3, 3, 3] as [9 (G + 2), G O, C]: the taps of G frames side by side, zeros where one does not see a frame of x."""
    o, c = weight.shape[:2]
    flat = weight.permute(2, 3, 4, 0, 1).to(dtype)
    side = flat.new_zeros(group + 2, 3, 3, group, o, c)
    for frame in range(group):
        side[frame : frame + 3, :, :, frame] = flat
    return side.view(9 * (group + 2), group * o, c)


def split(channels: int, k: int, tail: bool = False) -> tuple[int, int, int]:
    """(K, chunks, tail): how inputs are cut: into chunks of k, 32 or 16, whichever leaves no rest, or with `tail` as 64 + 32."""
    if channels > k and channels % k == 0:
        return k, channels // k, 0
    if tail and channels - k in (16, 32, 64):
        return k, 1, channels - k
    fitting = next((size for size in (k, 32, 16) if size <= k and channels % size == 0), None)
    size = fitting or min(k, max(16, triton.next_power_of_2(channels)))
    return size, triton.cdiv(channels, size), 0


def causal_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    cache: Tensor | None = None,
    stride: Size3 = (1, 1, 1),
    padding: Size3 = (0, 0, 0),
    config: Mapping[str, Any] | None = None,
) -> Tensor:
    """`turbort.ops.causal_conv3d` for 3x3x3 kernels, stride 1, padding 1, bf16 or fp16; `config` replaces the table's choice.

    Raises InputError for another geometry.
    """
    if tuple(weight.shape[2:]) != SHAPE or tuple(stride) != (1, 1, 1) or tuple(padding) != (1, 1, 1):
        raise InputError(
            f"the Triton convolution takes 3x3x3, stride 1, padding 1, not {tuple(weight.shape[2:])}, {stride}, {padding}",
            fix="plan this call for cuda/cudnn",
        )
    return convolved(joined(x, cache, 2).permute(0, 2, 3, 4, 1), weight, bias, config)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None = None, config: Mapping[str, Any] | None = None) -> Tensor:
    """[B, O, T, H, W], channels innermost, from contiguous x [B, T + 2, H, W, C] that has the past in front."""
    b, seen, h, w, c = x.shape
    t, o = seen - 2, weight.shape[0]
    chosen = config or pick("conv3d", capability(x.device), conv_class(o), f"{c}x{o}")
    out = torch.empty((b, t, h, w, o), dtype=x.dtype, device=x.device).permute(0, 4, 1, 2, 3)
    if out.numel() == 0:
        return out
    group = chosen.get("group", 1)
    flat = kept(weight, x.dtype, f"conv3d {group}", lambda: laid_out(weight, x.dtype, group))
    before = x.reshape(b * seen, h, w, c)
    bh, bw, n1, n2 = (chosen[name] for name in ("BH", "BW", "N1", "N2"))
    k, chunks, tail = split(c, chosen["K"], bool(chosen.get("tail")))
    tma = bool(chosen.get("tma")) and c * x.element_size() % ALIGNMENT == 0 and before.data_ptr() % ALIGNMENT == 0

    def of_x(size: int) -> Any:
        return _described(before, (1, bh, bw, size), tma) if size else None

    def of_w(outputs: int, size: int) -> Any:
        return _described(flat, (1, outputs, size), tma) if outputs and size else None

    n = flat.shape[1]
    tiles = b * triton.cdiv(n, n1 + n2) * triton.cdiv(w, bw) * triton.cdiv(h, bh) * triton.cdiv(t, group)
    flatten = bool(chosen.get("flatten"))
    programs = min(tiles, multiprocessors(x.device) * chosen.get("per_sm", 1)) if flatten else tiles
    with on(x.device):
        conv3d_kernel[(programs,)](
            of_x(k), of_x(tail), of_w(n1, k), of_w(n1, tail), of_w(n2, k), of_w(n2, tail), bias, out, tiles,
            t, h, w, c, o, n,
            bh, bw, k, chunks, tail, n1, n2, group, bool(chosen.get("swap")), bias is not None, tma, chosen["stages"], flatten,
            num_warps=chosen["warps"], num_stages=chosen["stages"],
        )  # fmt: skip
    return out


def _described(x: Tensor, block: tuple[int, ...], tma: bool) -> Any:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(block)) if tma else x
