"""`linear8` for Hopper in Gluon: the ends of tiles (scales, bias, GELU, gate, residual, store) run during other products.

The same arithmetic as `linear8.linear8_kernel`. A program has two warpgroups that multiply, each half of the rows of a tile,
and one warp that loads both operands by TMA into a ring of stages, tile after tile without a pause. A stage is free when both
have read it. The first warpgroup is `lead` steps ahead: while it ends its half of a tile, the second has the tensor cores for
itself, and the other way round, which warps that work in step cannot do. A residual comes by TMA, too, by a warp of its own,
into the memory from which the result leaves, long before it is needed.

Barriers, each in phase with the count of its uses:

    full[stage]    operands are there            loading warp -> both warpgroups
    empty[stage]   both have read them           both warpgroups -> loading warp
    turn           `lead` steps of a tile done   first warpgroup -> second, which then begins that tile
    held[half]     the residual is there         residual's warp -> that warpgroup
    gone[half]     the last result has left      that warpgroup -> residual's warp
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from turbort_cuda.kernels.epilogue import Epilogue
from turbort_cuda.kernels.hopper_parts import halves, load_tile, place, smooth, store_tile, thread_barrier
from turbort_cuda.launch import describable, multiprocessors, on

PART = 64
"""Columns of a tile that are finished and stored at a time: 128 bytes, a row of the swizzled shared memory."""
ROOM = 227 * 1024 - 1024
"""Bytes of shared memory for stages and results; barriers have the rest."""

MANY, FEW = gl.constexpr(232), gl.constexpr(40)
"""Registers of a thread that multiplies and of one that loads; together three times `REGISTERS`, less what rounding takes."""
REGISTERS = 168
"""What the launch asks for: 65,536 over 384 threads, a multiple of 8."""


@gluon.jit
def load_operands(
    x, w, a, b, full, empty, size,
    ROWS: gl.constexpr, COLS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The loading warp: every step of every tile into the next stage, as soon as both warpgroups have read what was there."""
    M, N, K = size
    steps = gl.cdiv(K, DEPTH)
    tiles_m = gl.cdiv(M, 2 * ROWS)
    tiles_n = gl.cdiv(N, COLS)
    done = 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, gl.num_programs(0)):
        pid_m, pid_n = place(tile, tiles_m, tiles_n, GROUP)
        row = pid_m * 2 * ROWS
        for k in range(steps):
            slot = done % STAGES
            mbarrier.wait(empty.index(slot), done // STAGES % 2 ^ 1)  # passes at once while the ring fills for the first time
            ready = full.index(slot)
            mbarrier.expect(ready, 2 * x.block_type.nbytes + w.block_type.nbytes)
            load_tile(x, [row, k * DEPTH], ready, a.index(2 * slot))
            load_tile(w, [pid_n * COLS, k * DEPTH], ready, b.index(slot))
            load_tile(x, [row + ROWS, k * DEPTH], ready, a.index(2 * slot + 1))
            done += 1


@gluon.jit
def load_residual(
    residual, results, held, gone, size,
    ROWS: gl.constexpr, COLS: gl.constexpr, GROUP: gl.constexpr, WIDTH: gl.constexpr, RESIDUAL: gl.constexpr,
):  # fmt: skip
    """The residual's warp: each half of each tile's residual, as soon as the result of the tile before has left its memory."""
    if RESIDUAL:
        PARTS: gl.constexpr = COLS // WIDTH
        M, N, _ = size
        tiles_m = gl.cdiv(M, 2 * ROWS)
        tiles_n = gl.cdiv(N, COLS)
        done = 0
        for tile in range(gl.program_id(0), tiles_m * tiles_n, gl.num_programs(0)):
            pid_m, pid_n = place(tile, tiles_m, tiles_n, GROUP)
            for half in gl.static_range(2):
                mbarrier.wait(gone.index(half), done % 2)
                mbarrier.expect(held.index(half), PARTS * residual.block_type.nbytes)
                for part in gl.static_range(PARTS):
                    corner = [(pid_m * 2 + half) * ROWS, pid_n * COLS + part * WIDTH]
                    load_tile(residual, corner, held.index(half), results.index(half * PARTS + part))
            done += 1  # noqa: SIM113 - Gluon has no enumerate


@gluon.jit
def end_part(
    sums, sx, rows, row, column, memory, out, vectors, strides, size,
    WIDTH: gl.constexpr, BUFFERS: gl.constexpr,
    HAS_BIAS: gl.constexpr, GELU: gl.constexpr, RESIDUAL: gl.constexpr, GATE: gl.constexpr,
):  # fmt: skip
    """Scale, finish and store WIDTH columns of one warpgroup's sums through `memory`, which holds the residual, if any."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 32])
    _, w_scale, bias, gate = vectors
    length, stride_gb, stride_gl = strides
    M, N, _ = size
    y = gl.convert_layout(sums, LAYOUT).to(gl.float32)
    cols = column + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
    known = cols < N
    y = y * gl.load(w_scale + cols, mask=known, other=0.0)[None, :] * sx[:, None]
    if HAS_BIAS:
        y = y + gl.load(bias + cols, mask=known, other=0.0).to(gl.float32)[None, :]
    if GELU:
        y = smooth(y)
    if GATE == 1:
        y = y * gl.load(gate + cols, mask=known, other=0.0).to(gl.float32)[None, :]
    if GATE == 2:
        start = (rows // length).to(gl.int64) * stride_gb + (rows % length).to(gl.int64) * stride_gl
        inside = (rows < M)[:, None] & known[None, :]
        y = y * gl.load(gate + (start[:, None] + cols[None, :]), mask=inside, other=0.0).to(gl.float32)
    if RESIDUAL:
        y = y + memory.load(LAYOUT).to(gl.float32)
    else:
        tma.store_wait(BUFFERS - 1)  # this memory's last result has left
    thread_barrier()
    memory.store(y.to(out.dtype))
    fence_async_shared()
    thread_barrier()
    store_tile(out, [row, column], memory)


@gluon.jit
def multiply(
    memory, ready, out, vectors, strides, size, HALF: gl.constexpr,
    ROWS: gl.constexpr, COLS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
    LEAD: gl.constexpr, WIDE: gl.constexpr, WIDTH: gl.constexpr, BUFFERS: gl.constexpr, INT: gl.constexpr,
    HAS_BIAS: gl.constexpr, GELU: gl.constexpr, RESIDUAL: gl.constexpr, GATE: gl.constexpr,
):  # fmt: skip
    """One of the two warpgroups: ROWS x COLS sums of each tile, rows `HALF` of it, one step's products in flight."""
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 32])
    ROWWISE: gl.constexpr = gl.SliceLayout(1, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 32]))
    PARTS: gl.constexpr = COLS // WIDTH
    kind: gl.constexpr = gl.int32 if INT else gl.float32
    a, b, results = memory
    full, empty, turn, held, gone = ready
    M, N, K = size
    steps = gl.cdiv(K, DEPTH)
    tiles_m = gl.cdiv(M, 2 * ROWS)
    tiles_n = gl.cdiv(N, COLS)
    done = 0
    count = 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, gl.num_programs(0)):
        pid_m, pid_n = place(tile, tiles_m, tiles_n, GROUP)
        row = (pid_m * 2 + HALF) * ROWS
        rows = row + gl.arange(0, ROWS, layout=ROWWISE)
        sx = gl.load(vectors[0] + rows, mask=rows < M, other=0.0)
        if HALF == 1 and LEAD > 0:
            mbarrier.wait(turn.index(0), count % 2)
        acc = gl.zeros([ROWS, COLS], kind, SUMS)
        for k in range(steps):
            slot = done % STAGES
            mbarrier.wait(full.index(slot), done // STAGES % 2)
            acc = warpgroup_mma(a.index(2 * slot + HALF), b.index(slot).permute((1, 0)), acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=[acc])  # the step before is done
            if RESIDUAL:
                tma.store_wait(0)  # waits in a tile's first step only, and the products do not
            thread_barrier()
            mbarrier.arrive(empty.index((done + STAGES - 1) % STAGES), count=1, pred=k > 0)
            if HALF == 0 and LEAD > 0:
                mbarrier.arrive(turn.index(0), count=1, pred=k == LEAD)
            if RESIDUAL:
                mbarrier.arrive(gone.index(HALF), count=1, pred=k == 0)
            done += 1
        acc = warpgroup_mma_wait(0, deps=[acc])
        thread_barrier()
        mbarrier.arrive(empty.index((done + STAGES - 1) % STAGES), count=1)
        if RESIDUAL:
            mbarrier.wait(held.index(HALF), count % 2)
        left, right = halves(acc)
        if PARTS == 4:
            quarters = halves(left) + halves(right)
        else:
            quarters = (left, right)
        for part in gl.static_range(PARTS):
            end_part(
                quarters[part], sx, rows, row, pid_n * COLS + part * WIDTH, results.index(HALF * BUFFERS + part % BUFFERS), out,
                vectors, strides, size, WIDTH, BUFFERS, HAS_BIAS, GELU, RESIDUAL, GATE,
            )  # fmt: skip
        count += 1  # noqa: SIM113 - Gluon has no enumerate
    tma.store_wait(0)  # shared memory must not end before it was read


@gluon.jit
def hopper_linear_kernel(
    x, w, out, residual, x_scale, w_scale, bias, gate, length, stride_gb, stride_gl, M, N, K,
    ROWS: gl.constexpr, COLS: gl.constexpr, DEPTH: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
    LEAD: gl.constexpr, WIDE: gl.constexpr, WIDTH: gl.constexpr, BUFFERS: gl.constexpr, INT: gl.constexpr,
    HAS_BIAS: gl.constexpr, GELU: gl.constexpr, RESIDUAL: gl.constexpr, GATE: gl.constexpr,
):  # fmt: skip
    """Tiles of 2 ROWS x COLS, DEPTH inputs a step; x, w, out and residual are descriptors of what one load or store moves.

    STAGES >= LEAD + 1 and at least STAGES + LEAD steps a tile, or the warpgroups would wait for each other for ever.
    """
    a = gl.allocate_shared_memory(x.dtype, [2 * STAGES, ROWS, DEPTH], x.layout)
    b = gl.allocate_shared_memory(w.dtype, [STAGES, COLS, DEPTH], w.layout)
    results = gl.allocate_shared_memory(out.dtype, [2 * BUFFERS, ROWS, WIDTH], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    held = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    gone = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=2)
    mbarrier.init(turn.index(0), count=1)
    for half in gl.static_range(2):
        mbarrier.init(held.index(half), count=1)
        mbarrier.init(gone.index(half), count=1)
    fence_async_shared()
    thread_barrier()
    memory = (a, b, results)
    ready = (full, empty, turn, held, gone)
    vectors = (x_scale, w_scale, bias, gate)
    strides = (length, stride_gb, stride_gl)
    size = (M, N, K)
    gl.warp_specialize(
        [
            (multiply, (memory, ready, out, vectors, strides, size, 0, ROWS, COLS, DEPTH, GROUP, STAGES, LEAD, WIDE, WIDTH,
                        BUFFERS, INT, HAS_BIAS, GELU, RESIDUAL, GATE)),
            (multiply, (memory, ready, out, vectors, strides, size, 1, ROWS, COLS, DEPTH, GROUP, STAGES, LEAD, WIDE, WIDTH,
                        BUFFERS, INT, HAS_BIAS, GELU, RESIDUAL, GATE)),
            (load_operands, (x, w, a, b, full, empty, size, ROWS, COLS, DEPTH, GROUP, STAGES)),
            (load_residual, (residual, results, held, gone, size, ROWS, COLS, GROUP, WIDTH, RESIDUAL)),
        ],
        [4, 1, 1],
        [MANY, FEW, FEW],
    )  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What a configuration comes to: ROWS of a warpgroup, COLS of a tile, DEPTH of a step, and what shared memory has room for.

    `wide`: columns of one product instruction; `buffers`: parts of results that each warpgroup has memory for.
    """

    rows: int
    cols: int
    depth: int
    stages: int
    lead: int
    wide: int
    buffers: int


def shape_of(config: Mapping[str, Any], *, int8: bool, residual: bool) -> Shape:
    """The tile of `config`, with as many stages, up to its `stages`, as shared memory has room for beside the results.

    A residual needs memory for a whole tile; without it each warpgroup has 16 KiB, so that parts leave while others are made.
    Triton has no int8 product wider than 224 columns, and a tile's width is a power of 2.
    """
    rows, cols, depth = config["BLOCK_M"] // 2, config["BLOCK_N"], config["BLOCK_K"]
    buffers = cols // PART if residual else 128 // rows
    room = ROOM - 2 * buffers * rows * PART * 2
    stages = min(config["stages"] * 128 // depth, room // ((2 * rows + cols) * depth))
    wide = min(cols, config.get("wide", 256), 128 if int8 else 256)
    return Shape(rows, cols, depth, stages, min(config.get("lead", 2), stages - 1), wide, buffers)


def layouts(depth: int) -> tuple[Any, Any]:
    """Shared-memory layouts of a stage's operands and of 16-bit results."""
    return gl.NVMMASharedLayout(depth, 8, 2), gl.NVMMASharedLayout(2 * PART, 16, 2)


def suits(rows: Tensor, values: Tensor, end: Epilogue, config: Mapping[str, Any]) -> bool:
    """Whether the kernel can take this call: operands that TMA reaches, a 16-bit result, and enough steps a tile."""
    shape = shape_of(config, int8=values.dtype == torch.int8, residual=end.flags["RESIDUAL"])
    reached = all(map(describable, (rows, values, end.out, end.residual)))
    return reached and end.out.element_size() == 2 and rows.shape[1] >= (shape.stages + shape.lead) * shape.depth


def launch(rows: Tensor, values: Tensor, x_scale: Tensor, w_scale: Tensor, end: Epilogue, config: Mapping[str, Any]) -> None:
    """Run the kernel on x [M, K] and w [N, K] into `end.out`; `suits` must have said yes."""
    (m, k), n, int8 = rows.shape, values.shape[0], values.dtype == torch.int8
    s = shape_of(config, int8=int8, residual=end.flags["RESIDUAL"])
    operands, results = layouts(s.depth)
    given = (
        TensorDescriptor.from_tensor(rows, [s.rows, s.depth], operands),
        TensorDescriptor.from_tensor(values, [s.cols, s.depth], operands),
        TensorDescriptor.from_tensor(end.out, [s.rows, PART], results),
        TensorDescriptor.from_tensor(end.residual, [s.rows, PART], results),
    )
    tiles = -(-m // (2 * s.rows)) * -(-n // s.cols)
    with on(rows.device):
        hopper_linear_kernel[(min(tiles, multiprocessors(rows.device)),)](
            *given, x_scale, w_scale, end.bias, end.gate, end.length, *end.strides[1:], m, n, k,
            s.rows, s.cols, s.depth, config["GROUP"], s.stages, s.lead, s.wide, PART, s.buffers, int8,
            **end.flags, num_warps=4, maxnreg=REGISTERS,
        )  # fmt: skip
