"""Every kernel of the backend, as rows for the planner. No torch here.

Rows named `torch` are the reference functions themselves, made of torch ops that torch-npu dispatches to CANN; they
stand behind the vendor kernels so that a refusal costs speed and not the run.
"""

from __future__ import annotations

from collections.abc import Iterator

from turbort import Call, Device, Kernel
from turbort.kernel import Rejects, TensorSpec
from turbort.precision import FLOATS
from turbort_ascend import rules as r

_HALF = ("fp16", "bf16")
_TOKENS = ("int8-token",)
_KERNELS = "turbort_ascend.kernels"
_PLAIN = (
    "norm_modulate", "layer_norm", "rms_norm", "gated_residual", "gated_residual_norm_modulate",
    "qk_norm_rope", "gelu_quant", "patchify", "unpatchify", "causal_conv3d", "vae_norm_silu", "vae_upsample", "linear",
)  # fmt: skip


def kernel_table() -> Iterator[Kernel]:
    """The rows of all ops."""
    yield from _linear()
    yield from _attention()
    yield from _quantising()
    yield from _fused()
    yield from _triton()
    for op in _PLAIN:
        yield Kernel(op, "torch", f"turbort.ops:{op}", FLOATS, priority=-10)


def _needs(*ops: str) -> frozenset[str]:
    return frozenset(ops)


def _linear() -> Iterator[Kernel]:
    yield Kernel(
        "linear",
        "quant-matmul",
        f"{_KERNELS}.linear:linear_w8a8",
        ("w8a8",),
        rejects=r.rules(
            r.not_on("pertoken-310p", "310P"), r.dtype_is("x", "dynamic-dtype", "float16", "bfloat16"),
            r.two_axes, r.matrix_within("last-dim"), r.not_empty,
        ),
        requires=_needs("npu_dynamic_quant", "npu_quant_matmul"),
        priority=20,
        pack=f"{_KERNELS}.linear:pack_w8a8",
    )  # fmt: skip
    yield Kernel(
        "linear",
        "weight-quant-matmul",
        f"{_KERNELS}.linear:linear_int4",
        ("w4a16", "w4a8"),
        rejects=r.rules(
            r.only_on("group-310p", "A2", "A3"), r.dtype_is("x", "weight-dtype", "float16", "bfloat16"),
            r.two_axes, r.matrix_within("kn-range"), r.groups_of_128, r.not_empty,
        ),
        requires=_needs("npu_weight_quant_batchmatmul", "npu_convert_weight_to_int4pack"),
        priority=20,
        pack=f"{_KERNELS}.linear:pack_int4",
    )  # fmt: skip


def _attention() -> Iterator[Kernel]:
    yield Kernel(
        "attention",
        "fused-infer",
        f"{_KERNELS}.attention:fused_infer",
        _HALF,
        rejects=r.rules(r.not_on("infer-products", "310P"), r.attention_sizes),
        requires=_needs("npu_fused_infer_attention_score"),
        priority=20,
    )
    yield Kernel(
        "attention",
        "fusion",
        f"{_KERNELS}.attention:fusion",
        FLOATS,
        rejects=r.rules(r.not_on("fusion-products", "310P"), r.fusion_sizes),
        requires=_needs("npu_fusion_attention"),
        priority=10,
        capturable=False,
    )
    yield Kernel(
        "attention",
        "prompt-flash",
        f"{_KERNELS}.attention:prompt_flash",
        ("fp16",),
        rejects=r.rules(r.dtype_is("q", "dtype-310p", "float16"), r.short_sequences, r.attention_sizes),
        requires=_needs("npu_prompt_flash_attention", "310P"),
        priority=20,
    )
    yield Kernel(
        "sla_attention",
        "block-sparse",
        f"{_KERNELS}.attention:block_sparse",
        _HALF,
        rejects=r.rules(
            r.only_on("sparse-products", "A2", "A3"), r.dtype_is("q", "sparse-dtype", "float16", "bfloat16"), r.sparse_blocks
        ),
        requires=_needs("npu_block_sparse_attention"),
        priority=20,
    )

    yield Kernel("attention", "plain", f"{_KERNELS}.attention:plain", FLOATS, priority=-10)
    yield Kernel("sla_attention", "gathered", f"{_KERNELS}.attention:gathered", FLOATS, priority=-10)


def _triton() -> Iterator[Kernel]:
    """Our own kernels, where Triton-Ascend is installed: what no vendor op computes on these chips."""
    ops, needs = f"{_KERNELS}.triton_ops", _needs("triton")
    half = ("float16", "bfloat16")
    block = r.rules(_floats("x", *half), r.two_axes, r.not_empty, r.matmul_grid)
    yield Kernel("linear", "triton-block128", f"{ops}:linear_block128", ("w8a8-block128",), block, needs, 20)
    tiles = r.rules(_floats("q", *half), r.attention_grid)
    yield Kernel("attention", "triton-int8", f"{ops}:attention_int8", ("int8",), tiles, needs, 20)
    yield Kernel("sla_attention", "triton-int8", f"{ops}:sla_int8", ("int8",), tiles, needs, 20)


def _floats(name: str, *dtypes: str) -> r.Rule:
    def rule(call: Call, _: Device) -> str | None:
        spec = call[name]
        wrong = isinstance(spec, TensorSpec) and spec.dtype.startswith(("float", "bfloat")) and spec.dtype not in dtypes
        return f"{name} is {spec.dtype}; the Triton kernels are checked for {' and '.join(dtypes)}" if wrong else None

    return rule


def _quantising() -> Iterator[Kernel]:
    """Ops that can hand their output over as int8 tokens: `npu_dynamic_quant` follows them."""
    no_310p = r.not_on("dynamic-products", "310P")
    half: Rejects = r.rules(no_310p, r.dtype_is("x", "dynamic-dtype", "float16", "bfloat16"))
    norms = f"{_KERNELS}.norm"
    for op in ("layer_norm", "norm_modulate", "gated_residual_norm_modulate"):
        yield Kernel(op, "layer-norm", f"{norms}:{op}", _HALF, half, _needs("npu_dynamic_quant"), 20, emits=_TOKENS)
    yield Kernel(
        "rms_norm", "rms-norm", f"{norms}:rms_norm", _HALF, half, _needs("npu_rms_norm", "npu_dynamic_quant"), 20, emits=_TOKENS
    )
    rotary = r.rules(r.not_on("rotary-310p", "310P"), r.dtype_is("x", "rms-dtype", "float16", "bfloat16"), r.rotary_sizes)
    yield Kernel("qk_norm_rope", "rotary", f"{norms}:qk_norm_rope", _HALF, rotary, _needs("npu_rms_norm", "npu_rotary_mul"), 20)
    quant = f"{_KERNELS}.quant"
    yield Kernel("gelu_quant", "gelu", f"{quant}:gelu_quant", _HALF, half, _needs("npu_dynamic_quant"), 20, emits=_TOKENS)
    yield Kernel("quantize", "dynamic-quant", f"{quant}:quantize", _HALF, half, _needs("npu_dynamic_quant"), 20, emits=_TOKENS)


def _fused() -> Iterator[Kernel]:
    """Ops that torch-npu has without a page: only for devices that were told to use them (`TURBORT_ASCEND_FUSED`)."""
    half: Rejects = r.rules(r.not_on("dynamic-products", "310P"), r.dtype_is("x", "dynamic-dtype", "float16", "bfloat16"))
    ops = f"{_KERNELS}.fused"
    gelu = _needs("npu_gelu_quant", "npu_dynamic_quant", "fused")
    yield Kernel("gelu_quant", "gelu-quant", f"{ops}:gelu_quant", _HALF, half, gelu, 30, emits=_TOKENS)
    one = r.rules(half, r.one_modulation)
    norm = _needs("npu_add_layer_norm", "npu_dynamic_quant", "fused")
    yield Kernel(
        "gated_residual_norm_modulate",
        "add-layer-norm",
        f"{ops}:gated_residual_norm_modulate",
        _HALF,
        one,
        norm,
        30,
        emits=_TOKENS,
    )
