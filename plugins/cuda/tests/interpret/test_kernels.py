"""What the conformance suite cannot see: padding lanes, descriptors, block choice, sums in a fixed order."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed; `pip install triton` brings the interpreter")

from turbort_cuda.kernels import attention, kv, linear8, linear_bsq, norm, rope, sla, sums, vae

from turbort import ops
from turbort.ops.block_map import block_map
from turbort.precision import SUMS
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize
from turbort.quant.sums import block_sums as reference_sums
from turbort.quant.sums import tree_sum


def _nmse(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.double(), want.double()
    return float((got - want).square().sum() / want.square().sum())


@pytest.mark.parametrize("width", [1536, 5120, 1000, 1024])
@pytest.mark.parametrize("mean", [0.1, 1.0, 100.0])
def test_padding_lanes_never_enter_a_statistic(width: int, mean: float) -> None:
    """A LayerNorm that counts the masked lanes of a padded row is off by 13 % at width 1536 and mean 1 sigma."""
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0)) + mean
    zero = torch.zeros(2, 1, width)
    got = norm.norm_modulate(x, zero, zero)
    assert isinstance(got, torch.Tensor)
    assert _nmse(got, torch.nn.functional.layer_norm(x.double(), (width,), eps=1e-6)) < 1e-8


@pytest.mark.parametrize("halves", [False, True])
def test_linear_through_descriptors(halves: bool) -> None:
    """Tails of M, N and K through TMA descriptors, in one piece and in halves."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(70, 144, generator=draw)
    weight = quantize(torch.randn(200, 144, generator=draw), "int8-channel")
    config = {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 128, "GROUP": 8, "stages": 2, "warps": 4, "tma": True, "halves": halves}
    got = linear8.linear(x, linear8.pack(weight), activation="gelu_tanh", config=config)
    assert _nmse(got, ops.linear(x, weight, activation="gelu_tanh")) < 1e-10


def test_a_gate_by_row_may_reach_past_two_to_the_31_values() -> None:
    """Offsets of a gate that differs by row and batch: six videos of 75,600 tokens and 5,120 channels have 2.3e9 values."""
    apart, tokens, width = (1 << 30) + 64, 2, 64
    # In the middle of memory that is never touched, so that an offset that wrapped reads zeros and not somebody's memory.
    room = torch.empty(5 * apart, dtype=torch.bfloat16)
    gate = room.as_strided((3, tokens, width), (apart, width, 1), storage_offset=2 * apart)
    draw = torch.Generator().manual_seed(0)
    gate.copy_(torch.randn(3, tokens, width, generator=draw))
    x, residual = torch.randn(3, tokens, 32, generator=draw), torch.randn(3, tokens, width, generator=draw)
    weight = quantize(torch.randn(width, 32, generator=draw), "int8-channel")
    got = linear8.linear(x, linear8.pack(weight), residual=residual, gate=gate)
    assert _nmse(got, ops.linear(x, weight, residual=residual, gate=gate)) < 1e-10


def test_attention_through_descriptors() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 140, 2, 128, generator=draw).bfloat16() for _ in range(3))
    config = {"BLOCK_M": 64, "BLOCK_N": 128, "stages": 2, "warps": 4}
    plain = attention.attention(q, k + 3, v, precision="int8-fp8", config=config)
    described = attention.attention(q, k + 3, v, precision="int8-fp8", config={**config, "tma": True})
    assert torch.equal(plain, described)


@pytest.mark.parametrize("precision", ["int8", "int8-fp8"])
@pytest.mark.parametrize(("scale", "far"), [(1.0, 3e-6), (30.0, 2e-5)])
def test_scores_may_become_floats_by_a_sum(precision: str, scale: float, far: float) -> None:
    """A hundredth of the error of rounding to int8, also with scores in the hundreds, and with a tail of masked keys."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 140, 2, 128, generator=draw) for _ in range(3))
    config = {"BLOCK_M": 64, "BLOCK_N": 128, "stages": 1, "warps": 4}
    one, two = (
        attention.attention((q * scale).bfloat16(), k.bfloat16(), v.bfloat16(), precision=precision, config={**config, **more})
        for more in ({}, {"biased": True})
    )
    assert _nmse(two, one) < far


@pytest.mark.parametrize("rows", [64, 128])
def test_block_sums_have_the_bits_of_the_reference(rows: int) -> None:
    x = torch.randn(2, 3 * rows + 17, 2, 128, generator=torch.Generator().manual_seed(0)) * 100
    found = sums.block_sums(x, rows)[0]
    assert found is not None
    assert torch.equal(found, reference_sums(x, rows)[0])


def test_chosen_blocks_are_those_of_the_reference() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 900, 2, 128, generator=draw).bfloat16() for _ in range(2))
    k_sums = sums.block_sums(k, 128)[0]
    assert k_sums is not None
    pooled = sums.finish_sums(k_sums, None, 900, 128, pool=True)[2]
    assert pooled is not None
    q_sums = sums.block_sums(q, 64)[0]
    assert q_sums is not None
    scores = sla.scores_of(q_sums, pooled)
    assert torch.equal(sla.choose(scores, 3), block_map(q, k, 0.4)[..., :3])


@pytest.mark.parametrize("blocks", [1, 5, 37, 300])
@pytest.mark.parametrize("kind", ["distinct", "ties", "signed zeros"])
def test_the_best_blocks_are_chosen_in_order(blocks: int, kind: str) -> None:
    scores = torch.randn(6, blocks, generator=torch.Generator().manual_seed(0)) * 3
    scores = {"distinct": scores, "ties": scores.round(), "signed zeros": 0.0 * scores}[kind]
    for count in {1, max(1, blocks // 10), blocks}:
        best = scores.sort(descending=True, stable=True).indices[:, :count].sort().values
        assert torch.equal(sla.choose(scores, count), best.int())


@pytest.mark.parametrize(("tile", "per_sm"), [(32, 1), (64, 2), (128, 1)])
@pytest.mark.parametrize("tokens", [1, 130, 300])
def test_the_linear_state_is_that_of_the_definition(tokens: int, tile: int, per_sm: int) -> None:
    """Tiles that end past the last token, chunks of unequal length, and fewer tiles than chunks."""
    draw = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, tokens, 2, 128, generator=draw).bfloat16() for _ in range(2))
    config = {"tile": tile, "per_sm": per_sm, "state_warps": 4, "state_stages": 1}
    state, totals = kv.linear_state(k, v, None, config)
    features = k.double().softmax(-1).transpose(1, 2).flatten(0, 1)
    assert _nmse(totals, features.sum(1)) < 1e-12
    assert _nmse(state, features.transpose(1, 2) @ v.double().transpose(1, 2).flatten(0, 1)) < 2e-5


@pytest.mark.parametrize("scheme", SUMS)
@pytest.mark.parametrize(("batch", "tokens", "heads", "d"), [(2, 333, 2, 128), (1, 64, 3, 64), (1, 5, 12, 128)])
def test_rotation_leaves_the_sums_of_the_reference_behind(scheme: str, batch: int, tokens: int, heads: int, d: int) -> None:
    """Bit by bit the sums of what was written, in the reference's order, and the same values as without sums."""
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(batch, tokens, heads * d, generator=draw).bfloat16(), torch.rand(heads * d, generator=draw)
    angles = torch.rand(tokens, d // 2, generator=draw)
    given = x, weight, angles.cos(), angles.sin()
    got = rope.qk_norm_rope(*given, heads=heads, emit=scheme)
    assert isinstance(got, QTensor)
    assert torch.equal(got.values, rope.qk_norm_rope(*given, heads=heads))
    assert torch.equal(got.scales, reference_sums(got.values.float(), int(scheme[5:]))[0])


@pytest.mark.parametrize("config", [{"rows": 1, "warps": 4}, {"rows": 8, "warps": 8}])
def test_tiles_of_any_height_add_up_to_the_same_sums(config: dict[str, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    x, angles = torch.randn(1, 100, 256, generator=draw) * 100, torch.rand(100, 64, generator=draw)
    given = x, torch.ones(256), angles.cos(), angles.sin()
    one, two = (rope.qk_norm_rope(*given, heads=2, emit="sums-64", config=c) for c in (None, config))
    assert isinstance(one, QTensor)
    assert isinstance(two, QTensor)
    assert torch.equal(two.scales, reference_sums(two.values, 64)[0])
    assert _nmse(two.values, one.values) < 1e-12


@pytest.mark.parametrize("precision", [None, "int8"])
def test_sums_that_come_along_change_nothing(precision: str | None) -> None:
    """Also where one of the two has none, or sums over blocks of another size."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 300, 2, 128, generator=draw).bfloat16() for _ in range(3))
    proj, bias = torch.randn(128, 128, generator=draw).bfloat16() / 11, torch.randn(128, generator=draw).bfloat16()

    def run(*given: torch.Tensor | QTensor) -> torch.Tensor:
        return sla.sla_attention(*given, v, proj, bias, topk=0.4, precision=precision)  # type: ignore[arg-type]

    plain = run(q, k)
    for schemes in (("sums-64", "sums-128"), ("sums-128", "sums-128"), ("sums-64", "sums-64")):
        assert torch.equal(plain, run(quantize(q, schemes[0]), quantize(k, schemes[1])))
    assert torch.equal(plain, run(q, quantize(k, "sums-128")))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_projection_is_multiplied_into_the_state(dtype: torch.dtype) -> None:
    """Rounded once, at the end: as exact as 16 bits are."""
    draw = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 300, 2, 128, generator=draw).to(dtype) for _ in range(2))
    proj = (torch.randn(128, 128, generator=draw) / 11).to(dtype)
    state = kv.prepare(k, v, 128, int8=False, fp8=False, linear=True, proj=proj).state
    assert state is not None
    features = k.double().softmax(-1).to(dtype).double()
    want = features.transpose(1, 2).transpose(-1, -2) @ v.double().transpose(1, 2) @ proj.double().t()
    assert _nmse(state, want.flatten(0, 1)) < (1e-5 if dtype == torch.bfloat16 else 1e-6)


def test_equal_scores_go_to_the_lower_block() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0, 2.0]])
    assert sla.choose(scores, 3).tolist() == [[1, 2, 3]]


def test_empty_blocks_are_skipped() -> None:
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    weight[:64, 64:] = 0
    packed = linear_bsq.pack(quantize(weight, "bsq8"))
    assert packed.density == 5 / 8
    x = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    assert _nmse(linear_bsq.linear(x, packed), x.double() @ weight.double().t()) < 4e-4


@pytest.mark.parametrize(("batch", "outputs"), [(1, 4), (2, 6)])
def test_upsampling_at_the_low_resolution(batch: int, outputs: int) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = (batch, 8, 2, 5, 3), (outputs, 8, 3, 3), (outputs,)
    x, weight, bias = (torch.randn(shape, generator=draw) for shape in shapes)
    assert _nmse(vae.vae_upsample(x, weight, bias), ops.vae_upsample(x, weight, bias)) < 1e-10


@pytest.mark.parametrize("blocks", [16, 64, 11])
def test_means_of_blocks_have_the_bits_of_the_reference(blocks: int) -> None:
    """Powers of two are summed in the kernel, other numbers of blocks by torch; both in the reference's order."""
    k = torch.randn(2, 64 * blocks - 13, 1, 64, generator=torch.Generator().manual_seed(0)) * 100
    found = sums.block_sums(k, 64)[0]
    assert found is not None
    mean, _, pooled = sums.finish_sums(found, None, k.shape[1], 64, pool=True)
    want_sums, counts = reference_sums(k, 64)
    want = tree_sum(want_sums, dim=1) / k.shape[1]
    assert torch.equal(mean.view(2, 1, 64), want)
    assert pooled is not None
    assert torch.equal(pooled, want_sums / counts - want.unsqueeze(1))
