"""Mistakes planted in the kernels' own source, each with the row of `turbort check tpu --targets` that must then fail.

The table of docs/tpu.md, "What can fail, and where it is caught", lists them.
"""

import inspect
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from turbort_tpu.aot import topology
from turbort_tpu.aot.check import target_rows
from turbort_tpu.aot.numerics import PLACE, numeric_rows
from turbort_tpu.generations import GENERATIONS
from turbort_tpu.kernels import attention, matmul, sla

UNFUSED = """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
"""
SCORES = """accumulate = jnp.int32 if int8 else jnp.float32
    scores = jax.lax.dot_general(q_ref[0], k_ref[0],"""
WIDE = "preferred_element_type=accumulate)"


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in `module`; row `check` of `target` must fail, saying one of `words`."""

    name: str
    module: types.ModuleType
    old: str
    new: str
    target: str
    check: str
    words: str

    def __str__(self):
        return f"{self.name}: {self.check}"


FAULTS = (
    Fault("mask of the padded keys removed", attention, "jnp.where(column < keys, scores, MASKED)", "scores",
          PLACE, "attention int8, ragged tail (interpret)", "nmse"),
    Fault("mask of the padded keys removed in SLA", sla, "jnp.where(column < keys, s, MASKED)", "s",
          PLACE, "sla int8, ragged tail (interpret)", "nmse"),
    Fault("int8 sums wrap", matmul, WIDE, "preferred_element_type=x_ref.dtype).astype(accumulate)",
          "v5e", "linear int8 1536->8960 gelu", "tpu.matmul"),
    Fault("int8 sums wrap", matmul, WIDE, "preferred_element_type=x_ref.dtype).astype(accumulate)",
          PLACE, "linear int8 with bias, gate and residual (interpret)", "nmse"),
    Fault("int8 scores wrap", attention, WIDE, "preferred_element_type=q_ref.dtype).astype(accumulate)",
          "v6e", "attention int8", "tpu.matmul"),
    Fault("INT8 widened to BF16 before the product", attention, SCORES,
          SCORES.replace("jnp.int32 if int8 else ", "").replace("_ref[0]", "_ref[0].astype(jnp.bfloat16)"),
          "v5e", "attention int8", "0 8-bit products"),
    Fault("attention unfused", attention, "    batch, lq, heads, real = q.shape\n", UNFUSED,
          "v5e", "attention bf16", "memory"),
    Fault("block too large for VMEM", attention, "BLOCK = 512", "BLOCK = 3072", "v5e", "attention int8", "vmem"),
    Fault("last block of depth left out", matmul, "steps = depth // bk", "steps = max(1, depth // bk - 1)",
          PLACE, "linear int8 with bias, gate and residual (simulate)", "nmse"),
)  # fmt: skip


def plant(monkeypatch, fault):
    """Run the changed source, and let the module's functions be those of the changed one."""
    source = inspect.getsource(fault.module)
    assert source.count(fault.old) == 1, f"{fault.old!r} is not there once"
    changed = types.ModuleType(fault.module.__name__)
    exec(compile(source.replace(fault.old, fault.new), fault.module.__file__, "exec"), changed.__dict__)
    for name, value in vars(changed).items():
        if isinstance(value, types.FunctionType) and value.__module__ == fault.module.__name__:
            monkeypatch.setattr(fault.module, name, value)


def row_of(fault):
    topology.prepare()
    rows = numeric_rows(fault.check) if fault.target == PLACE else target_rows(GENERATIONS[fault.target], fault.check)
    return next(row for row in rows if row["case"] == fault.check)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_caught(monkeypatch, fault):
    plant(monkeypatch, fault)
    row = row_of(fault)
    assert not row["ok"], row
    assert fault.words.lower() in row["detail"].lower()


def test_the_documentation_lists_them():
    text = (Path(__file__).parents[4] / "docs" / "tpu.md").read_text()
    for fault in FAULTS:
        assert f"| {fault.name} |" in text
        assert f"`{fault.check}`" in text
