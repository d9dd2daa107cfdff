"""Every refusal names its number and the vendor's sentence; every sentence is behind some refusal."""

from __future__ import annotations

import pytest
from turbort_ascend.device import OPS, make_device
from turbort_ascend.rules import QUOTES
from turbort_ascend.table import kernel_table

from turbort.kernel import Call, TensorSpec

ALL = frozenset(OPS) | {"npugraph"}
CHIPS = {"310P": "Ascend310P3", "A2": "Ascend910B3", "A3": "Ascend910_9391", "A5": "Ascend950PR_9589"}


def linear(m: int = 64, k: int = 1536, n: int = 1536, dtype: str = "bfloat16") -> dict[str, object]:
    return {"x": TensorSpec((1, m, k), dtype), "weight": TensorSpec((n, k), dtype)}


def qkv(length: int = 256, heads: int = 12, d: int = 128, dtype: str = "bfloat16", **more: object) -> dict[str, object]:
    spec = TensorSpec((1, length, heads, d), dtype)
    return {"q": spec, "k": spec, "v": spec, **more}


def rope(heads: int = 12, d: int = 128, batch: int = 1, dtype: str = "bfloat16", axes: int = 2) -> dict[str, object]:
    cos = TensorSpec((64, d // 2) if axes == 2 else (batch, 64, d // 2), "float32")
    return {"x": TensorSpec((batch, 64, heads * d), dtype), "cos": cos, "sin": cos, "heads": heads}


REFUSED = [
    # op, kernel, precision, family, arguments, quote, a number that must be in the sentence
    ("linear", "quant-matmul", "w8a8", "310P", linear(dtype="float16"), "pertoken-310p", "Ascend310P3"),
    ("linear", "quant-matmul", "w8a8", "A2", linear(k=65536), "last-dim", "65536"),
    ("linear", "quant-matmul", "w8a8", "A2", linear(dtype="float32"), "dynamic-dtype", "float32"),
    ("linear", "weight-quant-matmul", "w4a16", "310P", linear(dtype="float16"), "group-310p", "310P"),
    ("linear", "weight-quant-matmul", "w4a16", "A5", linear(), "group-310p", "A5"),
    ("linear", "weight-quant-matmul", "w4a16", "A2", linear(k=128), "group-size", "128"),
    ("linear", "weight-quant-matmul", "w4a16", "A2", linear(n=1001), "int4-pack", "1001"),
    ("linear", "weight-quant-matmul", "w4a16", "A2", linear(n=70000), "kn-range", "70000"),
    ("linear", "weight-quant-matmul", "w4a16", "A3", linear(dtype="float32"), "weight-dtype", "float32"),
    ("attention", "fused-infer", "fp16", "310P", qkv(dtype="float16"), "infer-products", "310P"),
    ("attention", "fused-infer", "bf16", "A2", qkv(heads=257, d=16), "heads", "257"),
    ("attention", "fused-infer", "bf16", "A2", qkv(heads=2, d=528), "head-dim", "528"),
    ("attention", "fused-infer", "bf16", "A2", qkv(d=72), "aligned-dim", "72"),
    ("attention", "fusion", "bf16", "310P", qkv(dtype="float16"), "fusion-products", "310P"),
    ("attention", "fusion", "bf16", "A2", qkv(heads=300), "fusion-heads", "300"),
    ("attention", "prompt-flash", "fp16", "310P", qkv(75600, dtype="float16"), "seq-310p", "75600"),
    ("attention", "prompt-flash", "fp16", "310P", qkv(dtype="float32"), "dtype-310p", "float32"),
    ("sla_attention", "block-sparse", "bf16", "A5", qkv(block=(64, 128)), "sparse-products", "A5"),
    ("sla_attention", "block-sparse", "bf16", "A2", qkv(block=(128, 64)), "sparse-block", "64"),
    ("sla_attention", "block-sparse", "bf16", "A2", qkv(d=96, block=(64, 128)), "sparse-dim", "96"),
    ("sla_attention", "block-sparse", "bf16", "A2", qkv(dtype="float32", block=(64, 128)), "sparse-dtype", "float32"),
    ("rms_norm", "rms-norm", "fp16", "310P", {"x": TensorSpec((1, 8, 64), "float16")}, "dynamic-products", "310P"),
    ("qk_norm_rope", "rotary", "fp16", "310P", rope(dtype="float16"), "rotary-310p", "310P"),
    ("qk_norm_rope", "rotary", "bf16", "A2", rope(heads=40, batch=25), "rotary-size", "1000"),
    ("qk_norm_rope", "rotary", "bf16", "A2", rope(axes=3), "rotary-layout", "3 axes"),
    ("qk_norm_rope", "rotary", "bf16", "A2", rope(dtype="float32"), "rms-dtype", "float32"),
]


@pytest.mark.parametrize(("op", "kernel", "precision", "family", "arguments", "quote", "number"), REFUSED)
def test_a_refusal_names_the_number_and_quotes_the_vendor(
    op: str, kernel: str, precision: str, family: str, arguments: dict[str, object], quote: str, number: str
) -> None:
    row = next(row for row in kernel_table() if (row.op, row.name) == (op, kernel))
    reason = row.refusal(Call(op, "here", "role", arguments), precision, make_device(CHIPS[family], features=ALL))
    assert reason is not None
    assert QUOTES[quote].text in reason
    assert number in reason.partition(";")[0]


def test_every_quote_is_behind_a_refusal() -> None:
    # This one speaks of the whole op, not of a call: `capturable=False`.
    elsewhere = {"fusion-graph"}
    assert {row[5] for row in REFUSED} | elsewhere == set(QUOTES)


def test_what_the_vendor_bars_from_graphs_is_marked() -> None:
    barred = {(row.op, row.name) for row in kernel_table() if not row.capturable}
    assert barred == {("attention", "fusion")}
    assert "aclgraph" in QUOTES["fusion-graph"].text


@pytest.mark.parametrize("family", ["A2", "A3"])
@pytest.mark.parametrize(
    ("op", "kernel", "precision", "arguments"),
    [
        ("linear", "quant-matmul", "w8a8", linear(32760, 1536, 8960)),
        ("linear", "quant-matmul", "w8a8", linear(75600, 13824, 5120)),
        ("linear", "weight-quant-matmul", "w4a16", linear(32760, 8960, 1536)),
        ("attention", "fused-infer", "bf16", qkv(32760)),
        ("sla_attention", "block-sparse", "bf16", qkv(75600, 40, block=(64, 128))),
        ("qk_norm_rope", "rotary", "bf16", rope(40)),
    ],
)
def test_what_wan_asks_is_accepted(family: str, op: str, kernel: str, precision: str, arguments: dict[str, object]) -> None:
    row = next(row for row in kernel_table() if (row.op, row.name) == (op, kernel))
    assert row.refusal(Call(op, "here", "role", arguments), precision, make_device(CHIPS[family], features=ALL)) is None


@pytest.mark.parametrize(
    ("op", "arguments", "said"),
    [
        ("linear", linear(k=200), "K = 200 is no multiple of 128"),
        ("linear", linear(m=4 * 75600, k=5120, n=13824), "255204 tiles exceed the 65535 programs"),
        ("linear", linear(dtype="float32"), "x is float32"),
        ("attention", qkv(75600, heads=128), "75648 tiles exceed"),
        ("attention", qkv(d=96), "head_dim is 96"),
        ("sla_attention", qkv(block=(64, 64)), "tiles of 64 x 64"),
    ],
)
def test_triton_kernels_refuse_what_was_not_checked(op: str, arguments: dict[str, object], said: str) -> None:
    row = next(row for row in kernel_table() if row.op == op and row.name.startswith("triton"))
    device = make_device("Ascend910B3", features=ALL | {"triton-ascend"})
    reason = row.refusal(Call(op, "here", "role", arguments), row.precisions[0], device)
    assert reason is not None
    assert said in reason


def test_triton_kernels_take_what_wan_asks_and_only_where_triton_is() -> None:
    with_triton = make_device("Ascend910B3", features=ALL | {"triton-ascend"})
    for op, precision, arguments in (
        ("linear", "w8a8-block128", linear(75600, 13824, 5120)),
        ("sla_attention", "int8", qkv(75600, 40, block=(64, 128))),
        ("attention", "int8", qkv(32760)),
    ):
        row = next(row for row in kernel_table() if row.op == op and row.name.startswith("triton"))
        call = Call(op, "here", "role", arguments)
        assert row.refusal(call, precision, with_triton) is None
        without = row.refusal(call, precision, make_device("Ascend910B3", features=ALL))
        assert without == "needs triton, which Ascend910B3 lacks"
    assert "triton" not in make_device("Ascend310P3", features=ALL | {"triton-ascend"}).features


def test_the_fused_norm_takes_one_modulation_for_all_tokens() -> None:
    row = next(row for row in kernel_table() if row.name == "add-layer-norm")
    x, one, each = (TensorSpec(shape, "bfloat16") for shape in ((1, 8, 64), (1, 1, 64), (1, 8, 64)))
    device = make_device("Ascend910B3", features=ALL | {"fused"})

    def reason(scale: TensorSpec) -> str | None:
        call = Call(row.op, "here", "norm", {"x": x, "y": x, "gate": one, "scale": scale, "shift": scale})
        return row.refusal(call, "bf16", device)

    assert reason(one) is None
    assert "512 values for 64 channels" in str(reason(each))


def test_a_missing_vendor_op_is_named() -> None:
    row = next(row for row in kernel_table() if row.name == "block-sparse")
    bare = make_device("Ascend910B3", features=ALL - {"npu_block_sparse_attention"})
    reason = row.refusal(Call("sla_attention", "here", "attn.self", qkv(block=(64, 128))), "bf16", bare)
    assert reason == "needs npu_block_sparse_attention, which Ascend910B3 lacks"
