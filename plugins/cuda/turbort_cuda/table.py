"""The kernels of the CUDA backend as rows for the planner. No torch, no triton."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from turbort.backend import Device
from turbort.kernel import Call, Kernel, Rejects, TensorSpec
from turbort.precision import SUMS
from turbort.reference import reference_kernels
from turbort_cuda.configs import conv3d_from

K = "turbort_cuda.kernels."
CUDA = frozenset({"cuda"})
TRITON = frozenset({"triton"})
INT8 = TRITON | {"int8"}
FP8 = TRITON | {"fp8"}
FLOATS = ("bf16", "fp16", "fp32")
HALF = ("bf16", "fp16")
HEAD_DIMS = (64, 128)
INNER = "channels_last"
WIDEST = 1 << 15
"""The widest row that one program keeps in registers."""
WIDEST_SUMMED = 1 << 13
"""The widest row of which `kernels.rope` can add up a block."""
EMITS = ("int8-token", "int8-block128")
TORCH_OPS = (
    "linear", "attention", "sla_attention", "gated_residual", "patchify", "unpatchify", "causal_conv3d", "vae_norm_silu",
    "vae_upsample", "norm_modulate", "layer_norm", "rms_norm", "gated_residual_norm_modulate", "qk_norm_rope",
)  # fmt: skip
NEEDING_CARE = ("attention", "sla_attention", "causal_conv3d", "vae_upsample")
"""Torch ops that are wrong, or not exact, on a GPU as they are: see `turbort_cuda.kernels.torch_ops`."""


def kernel_table() -> Iterator[Kernel]:
    """Every kernel: Triton where it wins, torch's own (cuDNN, cuBLAS) where that is faster, references behind both."""
    yield from _linears()
    yield from _attentions()
    yield from _rows()
    yield from _video()
    for kernel in reference_kernels("torch", priority=-100):
        if kernel.op in TORCH_OPS and not kernel.name.endswith("w4a8"):
            target = f"{K}torch_ops:{kernel.op}" if kernel.op in NEEDING_CARE else kernel.target
            yield Kernel(kernel.op, kernel.name, target, FLOATS, priority=-100)


def _linears() -> Iterable[Kernel]:
    eight, block, four, sparse = K + "linear8", K + "linear_block128", K + "linear_int4", K + "linear_bsq"
    return (
        Kernel("linear", "triton-int8", f"{eight}:linear", ("w8a8",), _matrix, INT8, 20, f"{eight}:pack"),
        Kernel("linear", "triton-fp8", f"{eight}:linear", ("fp8",), _matrix, FP8, 20, f"{eight}:pack"),
        Kernel("linear", "triton-block128", f"{block}:linear", ("w8a8-block128",), _matrix, INT8, 20, f"{block}:pack"),
        Kernel("linear", "triton-w4a8", f"{four}:linear_w4a8", ("w4a8",), _matrix, INT8, 20, f"{four}:pack"),
        Kernel("linear", "triton-w4a16", f"{four}:linear_w4a16", ("w4a16",), _half("x"), TRITON, 20, f"{four}:pack"),
        Kernel("linear", "triton-bsq", f"{sparse}:linear", ("bsq8", "bsq4"), _matrix, TRITON, 20, f"{sparse}:pack"),
    )


def _attentions() -> Iterable[Kernel]:
    dense, sparse = K + "attention:attention", K + "sla:sla_attention"
    return (
        Kernel("attention", "triton-int8", dense, ("int8",), _heads, INT8, 20),
        Kernel("attention", "triton-int8-fp8", dense, ("int8-fp8",), _heads, INT8 | FP8, 20),
        Kernel("attention", "sdpa", K + "sdpa:attention", HALF, None, frozenset(), 10),
        Kernel("sla_attention", "triton", sparse, HALF, _blocks, TRITON, 20, wants=_sums),
        Kernel("sla_attention", "triton-int8", sparse, ("int8",), _blocks, INT8, 20, wants=_sums),
        Kernel("sla_attention", "triton-int8-fp8", sparse, ("int8-fp8",), _blocks, INT8 | FP8, 20, wants=_sums),
    )


def _rows() -> Iterator[Kernel]:
    targets = {
        "norm_modulate": "norm:norm_modulate",
        "layer_norm": "norm:layer_norm",
        "rms_norm": "norm:rms_norm",
        "gated_residual_norm_modulate": "norm:gated_residual_norm_modulate",
        "gelu_quant": "quant:gelu_quant",
        "quantize": "quant:quantize",
    }
    for op, target in targets.items():
        yield Kernel(op, "triton", K + target, FLOATS, _width, TRITON | FP8, 20, emits=(*EMITS, "fp8-token"))
        yield Kernel(op, "triton-no-fp8", K + target, FLOATS, _width, TRITON, 10, emits=EMITS)
    time = K + "quant:quantize_time"
    yield Kernel("quantize_time", "triton", time, FLOATS, _width, TRITON | FP8, 20, emits=("int8-token", "fp8-token"))
    yield Kernel("quantize_time", "triton-no-fp8", time, FLOATS, _width, TRITON, 10, emits=("int8-token",))
    yield Kernel("gated_residual", "triton", K + "norm:gated_residual", FLOATS, _width, TRITON, 20)
    yield Kernel("qk_norm_rope", "triton", K + "rope:qk_norm_rope", FLOATS, _blocks_of_rows, TRITON, 20, emits=SUMS)
    yield Kernel("patchify", "triton", K + "patch:patchify", FLOATS, None, TRITON, 20)


def _video() -> Iterable[Kernel]:
    # `triton-any` is `triton` at every size: checked and timed, and there for plans that name it.
    return (
        Kernel("vae_norm_silu", "triton", K + "vae:vae_norm_silu", FLOATS, _video_axes, TRITON, 20, layout=INNER),
        Kernel("causal_conv3d", "triton", K + "conv3d:causal_conv3d", HALF, _conv_preferred, TRITON, 30, layout=INNER),
        Kernel("causal_conv3d", "triton-any", K + "conv3d:causal_conv3d", HALF, _conv, TRITON, -110, layout=INNER),
        Kernel("causal_conv3d", "cudnn", K + "vae:causal_conv3d", HALF, _video_axes, CUDA, 20, layout=INNER),
        Kernel("vae_upsample", "cudnn", K + "vae:vae_upsample", HALF, _video_axes, CUDA, 20, layout=INNER),
    )


def _matrix(call: Call, device: Device) -> str | None:
    """Refuse weights that are not matrices."""
    weight = call["weight"]
    if isinstance(weight, TensorSpec) and len(weight.shape) != 2:
        return f"packs weights with 2 axes, not {len(weight.shape)}"
    return None


def _half(name: str) -> Rejects:
    """Refuse a call whose tensor `name` is not in 16 bits."""

    def rejects(call: Call, device: Device) -> str | None:
        x = call[name]
        if isinstance(x, TensorSpec) and x.dtype not in ("bfloat16", "float16"):
            return f"multiplies in 16 bits, {name} is {x.dtype}"
        return _matrix(call, device)

    return rejects


def _heads(call: Call, device: Device) -> str | None:
    """Refuse head widths that do not fill a tensor-core tile, and values wider than 16 bits."""
    q, v = call["q"], call["v"]
    if isinstance(q, TensorSpec) and q.shape[-1] not in HEAD_DIMS:
        return f"takes heads of {' or '.join(map(str, HEAD_DIMS))} values, not {q.shape[-1]}"
    if isinstance(v, TensorSpec) and v.dtype not in ("bfloat16", "float16"):
        return f"multiplies P by V in 16 bits or fewer, v is {v.dtype}"
    return None


def _blocks(call: Call, device: Device) -> str | None:
    """Refuse block geometries that are no tensor-core tiles."""
    block = call["block"] or (64, 128)
    if any(edge not in (64, 128) for edge in block):
        return f"takes blocks of 64 or 128 rows, not {block[0]}x{block[1]}"
    return _heads(call, device)


def _sums(call: Call) -> dict[str, str]:
    """What RoPE's kernel can leave behind for the block map."""
    block = call["block"] or (64, 128)
    return {"q": f"sums-{block[0]}", "k": f"sums-{block[1]}"}


def _blocks_of_rows(call: Call, device: Device) -> str | None:
    """Refuse rows so wide that a block of 128 tokens has more tiles than RoPE's kernel has loops for."""
    x = call["x"]
    if isinstance(x, TensorSpec) and x.shape[-1] > WIDEST_SUMMED:
        return f"keeps tiles of rows of at most {WIDEST_SUMMED} values, not {x.shape[-1]}"
    return None


def _width(call: Call, device: Device) -> str | None:
    x = call["x"]
    if isinstance(x, TensorSpec) and x.shape[-1] > WIDEST:
        return f"keeps one row of at most {WIDEST} values in registers, not {x.shape[-1]}"
    return None


def _video_axes(call: Call, device: Device) -> str | None:
    x = call["x"]
    if isinstance(x, TensorSpec) and len(x.shape) != 5:
        return f"takes [B, C, T, H, W], x has {len(x.shape)} axes"
    return None


def _conv(call: Call, device: Device) -> str | None:
    """Refuse what is not a 3x3x3 convolution with stride and padding 1."""
    weight, stride, padding = call["weight"], call["stride"], call["padding"]
    if isinstance(weight, TensorSpec) and tuple(weight.shape[2:]) != (3, 3, 3):
        return f"takes kernels of 3x3x3, not {'x'.join(map(str, weight.shape[2:]))}"
    if tuple(stride or (1, 1, 1)) != (1, 1, 1) or tuple(padding or (0, 0, 0)) != (1, 1, 1):
        return f"takes stride 1 and padding 1, not {stride} and {padding}"
    return _video_axes(call, device)


def _conv_preferred(call: Call, device: Device) -> str | None:
    """Refuse what cuDNN does as fast, by `configs.CONV3D_FROM`."""
    x, weight = call["x"], call["weight"]
    if isinstance(x, TensorSpec) and isinstance(weight, TensorSpec) and len(x.shape) == len(weight.shape) == 5:
        outputs, size = weight.shape[0], x.shape[3] * x.shape[4]
        least = conv3d_from(device.arch, outputs)
        if least is None:
            return f"is not known to be faster than cuDNN at {outputs} outputs on {device.arch}"
        if size < least:
            return f"is faster than cuDNN from {least} pixels on, x has {size}"
    return _conv(call, device)
