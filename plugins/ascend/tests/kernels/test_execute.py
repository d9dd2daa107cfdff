"""The IR that Triton-Ascend lowers to, executed on the CPU and held against turbort's references.

Evidence: the kernels' arithmetic and the front half of the vendor's compiler. The back half and the cube units are not run.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import DENSE, MATMUL, SPARSE, with_dtype, with_tiles
from lowering import Launcher, missing_tools, to_library
from turbort_ascend.lowering import Source, missing_compiler, to_linalg

CHIP = "Ascend910B3"
BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Any:
    reason = missing_compiler() or missing_tools()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("lowered")
    made: dict[str, Path] = {}

    def make(source: Source) -> Launcher:
        key = f"{source.kernel}-{'-'.join(map(str, source.constants.values()))}-{sorted(source.types.values()).count('*fp16')}"
        if key not in made:
            made[key] = to_library(to_linalg(source, CHIP), folder / key)
        return Launcher(made[key], source.kernel)

    return make


@pytest.fixture
def bound(build: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`triton_ops` with the executed IR in place of its kernels."""
    from turbort_ascend.kernels import triton_ops

    def with_sources(**sources: Source) -> Any:
        launchers = SimpleNamespace(**{name: build(source) for name, source in sources.items()})
        monkeypatch.setattr(triton_ops, "kernels", lambda: launchers)
        return triton_ops

    return with_sources


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def nmse(got: torch.Tensor, wanted: torch.Tensor) -> float:
    a, b = got.double(), wanted.double()
    return float((a - b).square().sum() / b.square().sum())


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(("m", "k", "n"), [(128, 256, 128), (200, 512, 256), (7, 256, 72), (130, 384, 300)])
def test_block_scaled_products_are_bit_equal_to_the_reference(bound: Any, dtype: torch.dtype, m: int, k: int, n: int) -> None:
    from turbort import ops
    from turbort.quant.schemes import quantize

    source = MATMUL if dtype == BF16 else with_dtype(MATMUL, "fp16")
    x, weight = draw(1, m, k, dtype=dtype), quantize(draw(n, k, seed=1, scale=0.05), "int8-block128")
    bias = draw(n, dtype=dtype, seed=2)
    got = bound(int8_block_matmul=source).linear_block128(x, weight, bias)
    assert torch.equal(got, ops.linear(x, weight, bias))


@pytest.mark.parametrize(("dtype", "d"), [(BF16, 128), (FP16, 128), (BF16, 64)])
@pytest.mark.parametrize(("lq", "lk"), [(128, 128), (257, 257), (129, 77)])
def test_int8_attention_is_within_the_precisions_budget(bound: Any, dtype: torch.dtype, d: int, lq: int, lk: int) -> None:
    from turbort import ops
    from turbort.precision import PRECISIONS

    source = with_tiles(DENSE if dtype == BF16 else with_dtype(DENSE, "fp16"), D=d)
    q, k, v = (draw(1, length, 2, d, seed=seed, dtype=dtype) for seed, length in enumerate((lq, lk, lk)))
    got = bound(int8_attention=source).attention_int8(q, k, v)
    reference = ops.attention(q, k, v, precision="int8")
    exact = ops.attention(q.float(), k.float(), v.float())
    assert got.shape == reference.shape
    assert nmse(got, reference) < 2e-5
    assert nmse(got, exact) < max(PRECISIONS["int8"].max_nmse, 2 * nmse(reference, exact))


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(
    ("length", "topk", "block"), [(520, 0.6, (64, 128)), (300, 0.1, (64, 128)), (256, 1.0, (64, 128)), (257, 0.5, (128, 64))]
)
def test_int8_sla_is_within_the_precisions_budget(
    bound: Any, dtype: torch.dtype, length: int, topk: float, block: tuple[int, int]
) -> None:
    from turbort import ops

    source = with_tiles(SPARSE if dtype == BF16 else with_dtype(SPARSE, "fp16"), TILE_Q=block[0], TILE_K=block[1])
    q, k, v = (draw(1, length, 2, 128, seed=seed, dtype=dtype) for seed in range(3))
    proj, bias = draw(128, 128, seed=4, scale=0.1, dtype=dtype), draw(128, seed=5, scale=0.1, dtype=dtype)
    got = bound(int8_sparse_attention=source).sla_int8(q, k, v, proj, bias, topk=topk, block=block)
    reference = ops.sla_attention(q, k, v, proj, bias, topk=topk, block=block, precision="int8")
    assert nmse(got, reference) < 3e-5
