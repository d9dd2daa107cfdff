"""The kernels' own arithmetic around vendor ops, with written-down formulas in place of those ops."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ascend_host import references
from turbort_ascend.kernels import attention, fused, linear, norm, quant

from turbort import ops
from turbort.precision import PRECISIONS
from turbort.quant.qtensor import QTensor
from turbort.quant.schemes import quantize

FORMULAS = SimpleNamespace(**{name.partition("::")[2]: function for name, function in references.REFERENCES.items()})
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


@pytest.fixture(autouse=True)
def vendor_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attention, fused, linear, norm, quant):
        if hasattr(module, "npu"):
            monkeypatch.setattr(module, "npu", FORMULAS)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def nmse(got: torch.Tensor, wanted: torch.Tensor) -> float:
    a, b = got.double(), wanted.double()
    return float((a - b).square().sum() / b.square().sum())


@DTYPES
@pytest.mark.parametrize("extra", ["bias", "nobias", "gelu", "residual", "gate"])
def test_w8a8_agrees_with_the_reference(dtype: torch.dtype, extra: str) -> None:
    x, weight = draw(2, 9, 200, dtype=dtype), quantize(draw(72, 200, seed=1, scale=0.07), "int8-channel")
    bias = None if extra == "nobias" else draw(72, dtype=dtype, seed=2)
    more: dict[str, Any] = {"activation": "gelu_tanh"} if extra == "gelu" else {}
    if extra in ("residual", "gate"):
        more = {"residual": draw(2, 9, 72, dtype=dtype, seed=3), "gate": draw(2, 1, 72, seed=4) if extra == "gate" else None}
    got = linear.linear_w8a8(x, linear.pack_w8a8(weight), bias, **more)
    wanted = ops.linear(x, weight, bias, **more)
    assert got.dtype == wanted.dtype == dtype
    assert nmse(got, wanted) < 2e-5


def test_w8a8_takes_tokens_that_the_norm_quantised() -> None:
    x, weight = draw(1, 9, 200, dtype=torch.bfloat16), quantize(draw(72, 200, seed=1), "int8-channel")
    packed = linear.pack_w8a8(weight)
    assert torch.equal(linear.linear_w8a8(quantize(x, "int8-token"), packed), linear.linear_w8a8(x, packed))


def test_packing_w8a8_copies_nothing() -> None:
    weight = quantize(draw(72, 200), "int8-channel")
    packed = linear.pack_w8a8(weight)
    assert packed.values.data_ptr() == weight.values.data_ptr()
    assert packed.shape == (72, 200)


@DTYPES
@pytest.mark.parametrize("k", [256, 200])
def test_w4a16_agrees_with_the_reference(dtype: torch.dtype, k: int) -> None:
    x, weight = draw(1, 9, k, dtype=dtype), quantize(draw(72, k, seed=1, scale=0.07), "int4-group128")
    got = linear.linear_int4(x, linear.pack_int4(weight), draw(72, dtype=dtype, seed=2))
    assert nmse(got, ops.linear(x, weight, draw(72, dtype=dtype, seed=2))) < 2e-5


@DTYPES
def test_w4a8_widens_the_norms_tokens_and_stays_in_its_budget(dtype: torch.dtype) -> None:
    x, weight = draw(1, 9, 256, dtype=dtype), quantize(draw(72, 256, seed=1, scale=0.07), "int4-group128")
    exact = x.float() @ weight.dequantize(torch.float32).t()
    packed = linear.pack_int4(weight)
    from_tokens, from_floats = linear.linear_int4(quantize(x, "int8-token"), packed), linear.linear_int4(x, packed)
    assert from_tokens.dtype == dtype
    assert nmse(from_floats, exact) < nmse(from_tokens, exact) < PRECISIONS["w4a8"].max_nmse / 10


@DTYPES
def test_fused_gelu_hands_over_the_tokens_of_the_two_launches(dtype: torch.dtype) -> None:
    x = draw(2, 9, 128, dtype=dtype)
    got, wanted = fused.gelu_quant(x, emit="int8-token"), quant.gelu_quant(x, emit="int8-token")
    assert got.scheme == "int8-token"
    assert nmse(got.dequantize(torch.float32), wanted.dequantize(torch.float32)) < 1e-4
    assert torch.equal(fused.gelu_quant(x), quant.gelu_quant(x))


@DTYPES
def test_fused_residual_and_norm_agree_with_the_two_launches(dtype: torch.dtype) -> None:
    x, y = (draw(1, 9, 64, dtype=dtype, seed=seed) for seed in (0, 1))
    gate, scale, shift = (draw(1, 1, 64, seed=seed) for seed in (2, 3, 4))
    got = fused.gated_residual_norm_modulate(x, y, gate, scale, shift)
    wanted = ops.gated_residual_norm_modulate(x, y, gate, scale, shift)
    assert all(a.dtype == b.dtype and nmse(a, b) < 5e-5 for a, b in zip(got, wanted, strict=True))


def test_int4_packing_is_undone_exactly() -> None:
    codes = torch.randint(-8, 8, (5, 16), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    assert torch.equal(references.unpacked(references.npu_convert_weight_to_int4pack(codes)), codes.float())


def test_a_row_of_zeros_stays_zero() -> None:
    got = quant.tokens(torch.zeros(1, 3, 64, dtype=torch.bfloat16))
    assert torch.equal(got.dequantize(torch.float32), torch.zeros(1, 3, 64))
    assert float(got.scales.min()) > 0


NORMS: list[tuple[str, Callable[[torch.dtype], tuple[Any, ...]]]] = [
    ("layer_norm", lambda d: (draw(2, 7, 64, dtype=d), draw(64, seed=1, dtype=d), draw(64, seed=2, dtype=d))),
    ("norm_modulate", lambda d: (draw(2, 7, 64, dtype=d), draw(2, 1, 64, seed=1), draw(2, 1, 64, seed=2))),
    ("norm_modulate", lambda d: (draw(1, 7, 64, dtype=d), draw(1, 1, 64, seed=1), draw(1, 1, 64, seed=2))),
    ("norm_modulate", lambda d: (draw(1, 7, 64, dtype=d), draw(1, 7, 64, seed=1), draw(1, 7, 64, seed=2))),
    ("rms_norm", lambda d: (draw(2, 7, 64, dtype=d), draw(64, seed=1, dtype=d))),
    (
        "gated_residual_norm_modulate",
        lambda d: (
            draw(1, 7, 64, dtype=d),
            draw(1, 7, 64, seed=1, dtype=d),
            draw(1, 1, 64, seed=2),
            draw(1, 1, 64, seed=3),
            draw(1, 1, 64, seed=4),
        ),
    ),
]


@DTYPES
@pytest.mark.parametrize(("name", "make"), NORMS)
def test_norms_agree_with_the_reference_and_hand_over_tokens(
    dtype: torch.dtype, name: str, make: Callable[[torch.dtype], tuple[Any, ...]]
) -> None:
    kernel, spec = getattr(norm, name), ops.OPS[name]
    got, wanted = kernel(*make(dtype)), spec(*make(dtype))
    pairs = list(zip(got, wanted, strict=True)) if isinstance(got, tuple) else [(got, wanted)]
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert nmse(a, b) < 3e-5
    tokens = kernel(*make(dtype), emit="int8-token")
    tokens = tokens[1] if isinstance(tokens, tuple) else tokens
    assert isinstance(tokens, QTensor)
    assert tokens.scheme == "int8-token"
    assert nmse(tokens.dequantize(torch.float32), pairs[-1][1]) < 1e-3


@DTYPES
def test_rope_turns_interleaved_pairs(dtype: torch.dtype) -> None:
    angles = draw(7, 16, seed=1, scale=3.0)
    x, weight = draw(2, 7, 64, dtype=dtype), draw(64, seed=2, dtype=dtype)
    got = norm.qk_norm_rope(x, weight, angles.cos(), angles.sin(), heads=2)
    wanted = ops.qk_norm_rope(x, weight, angles.cos(), angles.sin(), heads=2)
    assert got.shape == wanted.shape == (2, 7, 2, 32)
    assert nmse(got, wanted) < 3e-5


@pytest.mark.parametrize("kernel", [attention.fused_infer, attention.fusion, attention.prompt_flash, attention.plain])
def test_dense_attention_agrees_with_the_reference(kernel: Callable[..., torch.Tensor]) -> None:
    q, k, v = (draw(2, length, 3, 64, seed=seed, dtype=torch.float16) for seed, length in enumerate((33, 65, 65)))
    got = kernel(q, k, v)
    assert got.shape == q.shape
    assert nmse(got, ops.attention(q, k, v)) < 1e-6


@pytest.mark.parametrize(("length", "topk"), [(300, 0.4), (128, 1.0), (577, 0.1)])
@pytest.mark.parametrize("kernel", [attention.block_sparse, attention.gathered])
def test_sparse_attention_sees_the_blocks_of_the_reference(kernel: Callable[..., torch.Tensor], length: int, topk: float) -> None:
    q, k, v = (draw(2, length, 2, 64, seed=seed) for seed in range(3))
    proj, bias = draw(64, 64, seed=4, scale=0.1), draw(64, seed=5, scale=0.1)
    got = kernel(q, k, v, proj, bias, topk=topk, block=(64, 128))
    assert nmse(got, ops.sla_attention(q, k, v, proj, bias, topk=topk, block=(64, 128))) < 1e-9


def test_a_wrong_layout_is_caught_by_the_formula() -> None:
    q = draw(1, 33, 3, 64, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="heads"):
        FORMULAS.npu_fused_infer_attention_score(q, q, q, num_heads=3, scale=0.1, input_layout="BNSD")


def test_a_missing_token_scale_is_caught() -> None:
    """Without `pertoken_scale` the result is off by the tokens' scales: the budget of w8a8 finds it."""
    x, weight = draw(1, 9, 200, dtype=torch.bfloat16), quantize(draw(72, 200, seed=1), "int8-channel")
    packed, tokens = linear.pack_w8a8(weight), quantize(x, "int8-token")
    bare = FORMULAS.npu_quant_matmul(tokens.values[0], packed.values, packed.scales, output_dtype=torch.bfloat16)
    assert nmse(bare, ops.linear(x, weight)[0]) > 4e-4
