"""Why a vendor op cannot take a call: one rule per documented constraint, with the vendor's own words. No torch here.

`QUOTES` are verbatim from `torch_npu/_op_plugin_docs.py` of torch-npu 2.13.0, unless `source` says otherwise. A refusal
names the number that broke the rule and quotes the sentence, so that it can be looked up and disputed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from turbort import Call, Device
from turbort.kernel import Rejects, TensorSpec
from turbort_ascend.device import family


@dataclass(frozen=True)
class Quote:
    """One sentence of the vendor: the op it belongs to and its wording."""

    op: str
    text: str
    source: str = "torch-npu 2.13.0, _op_plugin_docs.py"

    def __str__(self) -> str:
        return f"{self.op}: “{self.text}”"


QUOTES: Mapping[str, Quote] = {
    "pertoken-310p": Quote("npu_quant_matmul", "Atlas 推理系列加速卡产品: 不支持pertoken_scale."),
    "last-dim": Quote("npu_quant_matmul", "x1与x2最后一维的shape大小不能超过65535"),
    "dynamic-dtype": Quote("npu_dynamic_quant", "数据类型支持torch.float16、torch.bfloat16"),
    "dynamic-products": Quote(
        "npu_dynamic_quant", "支持的型号: Atlas A2 训练系列产品/Atlas 800I A2 推理产品 Atlas A3 训练系列产品"
    ),
    "group-310p": Quote("npu_weight_quant_batchmatmul", "Atlas 推理系列加速卡产品: per-tensor、per-channel"),
    "group-size": Quote("npu_weight_quant_batchmatmul", "per-group场景下要求传入值的范围为[32, K-1]且必须是32的倍数"),
    "kn-range": Quote("npu_weight_quant_batchmatmul", "K、N的范围为[1, 65535]"),
    "weight-dtype": Quote("npu_weight_quant_batchmatmul", "数据类型支持float16、bfloat16"),
    "int4-pack": Quote("npu_convert_weight_to_int4pack", "最后一维度需要8个元素对齐"),
    "sparse-products": Quote(
        "npu_block_sparse_attention",
        "支持的型号: Atlas A3 训练系列产品/Atlas A3 推理系列产品 Atlas A2 训练系列产品/Atlas 800I A2 推理产品/A200I A2 Box 异构组件",
    ),
    "sparse-block": Quote("npu_block_sparse_attention", "blockShapeY 必须为 128 的倍数"),
    "sparse-dim": Quote("npu_block_sparse_attention", "正向路径当前支持 headDim=64 或 128"),
    "sparse-dtype": Quote("npu_block_sparse_attention", "query、key、value 数据类型必须一致且为 float16 或 bfloat16"),
    "infer-products": Quote(
        "npu_fused_infer_attention_score", "支持的芯片型号: Atlas A2 训练系列产品/Atlas 800I A2 推理产品 Atlas A3 训练系列产品"
    ),
    "heads": Quote("npu_prompt_flash_attention", "支持N轴小于等于256"),
    "head-dim": Quote("npu_prompt_flash_attention", "支持D轴小于等于512. input_layout为BSH或者BSND时, 要求N*D小于65535"),
    "seq-310p": Quote(
        "npu_prompt_flash_attention",
        "Atlas 推理系列加速卡产品: 支持B轴小于等于128. 支持N轴小于等于256. 支持S轴小于等于65535(64k)",
    ),
    "dtype-310p": Quote("npu_prompt_flash_attention", "Atlas 推理系列加速卡产品: 数据类型支持float16."),
    "aligned-dim": Quote("npu_prompt_flash_attention", "暂不支持D不对齐场景"),
    "fusion-heads": Quote("npu_fusion_attention", "Nq取值范围1~256"),
    "fusion-graph": Quote("npu_fusion_attention", "该接口暂不支持图模式, 不支持aclgraph."),
    "fusion-products": Quote("npu_fusion_attention", "支持的型号 Atlas A2 训练系列产品"),
    "rotary-310p": Quote(
        "npu_rotary_mul",
        "aclop only support rotary_mode with half",
        "message of torch-npu 2.13.0's own host code for Ascend310P3",
    ),
    "rotary-size": Quote(
        "npu_rotary_mul", "interleave模式： input: layout支持: BNSD、BSND、SBND; B * N < 1000; D < 896, 且D为2的倍数"
    ),
    "rotary-layout": Quote("npu_rotary_mul", "input为BSND: 1S1D"),
    "rms-dtype": Quote("npu_rms_norm", "输入数据类型仅支持float16、bfloat16和float32"),
}

Rule = Callable[[Call, Device], "str | None"]
LAST_DIM = 65535


def refuse(reason: str, quote: str) -> str:
    """A refusal: the number that broke the rule, then the vendor's sentence."""
    return f"{reason}; {QUOTES[quote]}"


def rules(*checks: Rule) -> Rejects:
    """The first reason that any rule gives."""

    def rejects(call: Call, device: Device) -> str | None:
        return next(filter(None, (check(call, device) for check in checks)), None)

    return rejects


def not_on(quote: str, *families: str) -> Rule:
    """Refuse devices of these families."""

    def rule(_: Call, device: Device) -> str | None:
        mine = family(device)
        return refuse(f"{device.arch} is of family {mine}", quote) if mine in families else None

    return rule


def only_on(quote: str, *families: str) -> Rule:
    """Refuse devices of any other family."""

    def rule(_: Call, device: Device) -> str | None:
        mine = family(device)
        return None if mine in families else refuse(f"{device.arch} is of family {mine or 'unknown'}", quote)

    return rule


def dtype_is(argument: str, quote: str, *dtypes: str) -> Rule:
    """Refuse a call whose `argument` has another float dtype (quantised tensors pass: they name a scheme)."""

    def rule(call: Call, _: Device) -> str | None:
        spec = call[argument]
        if isinstance(spec, TensorSpec) and spec.dtype.startswith(("float", "bfloat")) and spec.dtype not in dtypes:
            return refuse(f"{argument} is {spec.dtype}", quote)
        return None

    return rule


def matrix_within(quote: str) -> Rule:
    """Refuse a weight [N, K] with an axis longer than 65535."""

    def rule(call: Call, _: Device) -> str | None:
        weight = _shape(call, "weight")
        longest = max(weight, default=0)
        return refuse(f"an axis of {longest} exceeds {LAST_DIM}", quote) if longest > LAST_DIM else None

    return rule


def two_axes(call: Call, _: Device) -> str | None:
    """Refuse weights that are no matrix, which cannot be packed."""
    count = len(_shape(call, "weight"))
    return None if count == 2 else f"packs weights with 2 axes, not {count}"


def not_empty(call: Call, _: Device) -> str | None:
    """Refuse calls without a single row."""
    shape = _shape(call, "x")
    return f"x of shape {shape} has no element" if shape and not prod(shape) else None


def one_modulation(call: Call, _: Device) -> str | None:
    """Refuse modulations per token or per video: the op's gamma and beta have one value per channel."""
    width, scale = _shape(call, "x")[-1], _shape(call, "scale")
    return None if prod(scale) == width else f"a modulation of {prod(scale)} values for {width} channels is no gamma and beta"


def groups_of_128(call: Call, _: Device) -> str | None:
    """Refuse int4 weights whose group of 128 inputs or packed axis does not fit."""
    shape = _shape(call, "weight")
    if len(shape) != 2:
        return None
    n, k = shape
    if k <= 128:
        return refuse(f"a group of 128 needs K > 128, not {k}", "group-size")
    return refuse(f"N = {n} is no multiple of 8", "int4-pack") if n % 8 else None


def sparse_blocks(call: Call, _: Device) -> str | None:
    """Refuse SLA geometries and head sizes that the block-sparse op lacks."""
    key_block = (call["block"] or (64, 128))[1]
    d = _shape(call, "q")[-1]
    if key_block % 128:
        return refuse(f"key blocks have {key_block} tokens", "sparse-block")
    return None if d in (64, 128) else refuse(f"head_dim is {d}", "sparse-dim")


def attention_sizes(call: Call, _: Device) -> str | None:
    """Refuse head counts and sizes that the fused inference attention lacks."""
    heads, d = _shape(call, "q")[-2:]
    if heads > 256:
        return refuse(f"{heads} heads exceed 256", "heads")
    if d > 512 or heads * d >= LAST_DIM:
        return refuse(f"head_dim {d} with {heads} heads", "head-dim")
    return refuse(f"head_dim {d} is no multiple of 16", "aligned-dim") if d % 16 else None


def fusion_sizes(call: Call, _: Device) -> str | None:
    """Refuse head counts that the fused training attention lacks."""
    heads = _shape(call, "q")[-2]
    return refuse(f"{heads} heads exceed 256", "fusion-heads") if heads > 256 else None


def short_sequences(call: Call, device: Device) -> str | None:
    """Refuse sequences that are too long for the inference cards."""
    longest = max(_shape(call, "q")[1], _shape(call, "k")[1])
    if family(device) == "310P" and longest > LAST_DIM:
        return refuse(f"a sequence of {longest} tokens exceeds {LAST_DIM}", "seq-310p")
    return None


def rotary_sizes(call: Call, _: Device) -> str | None:
    """Refuse head counts, head sizes and rotation tables that the interleaved rotary op lacks."""
    batch, width = _shape(call, "x")[0], _shape(call, "x")[-1]
    heads = int(call["heads"])
    d = width // heads
    if batch * heads >= 1000:
        return refuse(f"B * N is {batch * heads}", "rotary-size")
    if d >= 896 or d % 2:
        return refuse(f"D is {d}", "rotary-size")
    axes = len(_shape(call, "cos"))
    return refuse(f"cos has {axes} axes: one table per batch item", "rotary-layout") if axes != 2 else None


MOST_PROGRAMS = 65535
"""Triton-Ascend starts at most this many programs (its coreDim is an unsigned 16-bit number)."""


def matmul_grid(call: Call, _: Device) -> str | None:
    """Refuse inputs that are no whole tiles, and products whose 128 x 128 tiles exceed one launch."""
    rows, (n, k) = prod(_shape(call, "x")[:-1]), _shape(call, "weight")
    if k % 128:
        return f"K = {k} is no multiple of 128, and the Triton kernel reads whole tiles of K"
    return _grid(-(-rows // 128) * -(-n // 128))


def attention_grid(call: Call, _: Device) -> str | None:
    """Refuse attention whose query tiles exceed one launch, and head sizes that the kernels were not compiled for."""
    batch, length, heads, d = _shape(call, "q")
    rows, keys = call["block"] or (128, 64)
    if d not in (64, 128):
        return f"head_dim is {d}; the Triton kernels are checked for 64 and 128"
    if (rows, keys) not in ((128, 64), (64, 128)):
        return f"tiles of {rows} x {keys}; the Triton kernels are checked for 128 x 64 and 64 x 128"
    return _grid(-(-length // rows) * heads * batch)


def _grid(programs: int) -> str | None:
    return f"{programs} tiles exceed the {MOST_PROGRAMS} programs of one Triton launch" if programs > MOST_PROGRAMS else None


def _shape(call: Call, name: str) -> tuple[int, ...]:
    spec: Any = call[name]
    return spec.shape if isinstance(spec, TensorSpec) else ()
