"""What the rows of `turbort check tpu --targets` do not cover: the choice of blocks at odd sizes, and the counter of products."""

import jax
import jax.numpy as jnp
import pytest
import torch
from turbort_tpu.aot.inspect import Dots, dots
from turbort_tpu.aot.numerics import MODES, draw, numeric_rows, numerics, tokens
from turbort_tpu.bridge.convert import to_jax, to_torch
from turbort_tpu.kernels import common
from turbort_tpu.kernels.block_map import block_map
from turbort_tpu.kernels.matmul import scaled_matmul

from turbort.ops.block_map import block_map as reference_map
from turbort.quant.schemes import quantize


@pytest.mark.parametrize(("length", "topk"), [(576, 0.1), (1021, 0.25), (7, 0.1), (321, 1.0)])
def test_block_map_is_the_references(length, topk):
    q, k = tokens(length, 2, 0), tokens(length, 2, 7)
    got = to_torch(block_map(to_jax(q), to_jax(k), topk, (64, 128)))
    assert torch.equal(got, reference_map(q, k, topk, (64, 128)))


def test_both_modes_run_as_they_say(monkeypatch):
    seen = []
    real = common.interpret
    monkeypatch.setattr("turbort_tpu.kernels.rows.interpret", lambda: seen.append(real()) or real())
    rows = list(numeric_rows("gelu to int8"))
    assert [row["ok"] for row in rows] == [True] * len(MODES)
    assert [type(mode).__name__ for mode in seen] == ["bool", "InterpretParams"]


def test_every_row_has_a_name_of_its_own():
    names = [case.name for case in numerics()]
    assert len(names) == len(set(names))


def test_wrapped_int8_sums_are_seen():
    x = quantize(draw(1, 40, 256, dtype=torch.float32), "int8-token")
    codes = jax.ShapeDtypeStruct((1, 40, 256), jnp.int8)
    weight = jax.ShapeDtypeStruct((128, 256), jnp.int8)
    right = jax.make_jaxpr(lambda a, b: scaled_matmul(a, jnp.ones((1, 40, 1)), b, jnp.ones((1, 128)), out_dtype=jnp.float32))(
        codes, weight
    )
    wrong = jax.make_jaxpr(lambda a, b: jnp.matmul(a, b.T))(codes, weight)
    assert (dots(right), dots(wrong)) == (Dots(1, 0), Dots(0, 1))
    full = x.values[0].int() @ x.values[0].int().t()
    wrapped = to_torch(jnp.matmul(to_jax(x.values[0]), to_jax(x.values[0]).T)).int()
    assert not torch.equal(full, wrapped)
