"""The kernel table: what the planner reads. Nothing here imports torch or jax."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from turbort.backend import Device
from turbort.kernel import Call, Kernel, TensorSpec
from turbort_tpu.generations import GENERATIONS

LANES = 128
_OPS = "turbort_tpu.bridge.ops"
_ROW_EMITS = ("int8-token", "fp8-token")


@dataclass(frozen=True)
class TpuKernel(Kernel):
    """A kernel that also knows which 8-bit format it is for, and refuses where that format brings nothing.

    `format`: `int8`, `fp8` or None.
    """

    format: str | None = None

    def refusal(self, call: Call, precision: str, device: Device) -> str | None:
        generation = GENERATIONS.get(device.arch)
        if precision in self.precisions and self.format and generation and self.format in generation.no_gain:
            return generation.no_gain[self.format]
        return super().refusal(call, precision, device)


def tpu_kernels() -> Iterable[Kernel]:
    """Every kernel of the backend, for all generations."""
    yield Kernel("linear", "xla-linear", f"{_OPS}:linear_float", ("fp32", "bf16"), pack="turbort_tpu.bridge.pack:plain")
    yield _eight_bit("linear", "pallas-w8a8", "linear_int8", ("w8a8",), "int8")
    yield _eight_bit("linear", "pallas-fp8", "linear_fp8", ("fp8",), "fp8")
    yield Kernel("attention", "pallas-flash", f"{_OPS}:attention_float", ("bf16",), rejects=_halves)
    yield TpuKernel("attention", "pallas-int8", f"{_OPS}:attention_int8", ("int8",), _halves, frozenset({"int8"}), format="int8")
    yield Kernel("sla_attention", "pallas-sla", f"{_OPS}:sla_float", ("bf16",), rejects=_sla)
    yield TpuKernel("sla_attention", "pallas-sla-int8", f"{_OPS}:sla_int8", ("int8",), _sla, frozenset({"int8"}), format="int8")
    for op in ("norm_modulate", "layer_norm", "rms_norm", "gated_residual_norm_modulate", "gelu_quant", "quantize"):
        yield Kernel(op, "pallas-rows", f"{_OPS}:{op}", ("fp32", "bf16"), rejects=_emit, emits=_ROW_EMITS)
    yield Kernel("qk_norm_rope", "pallas-rope", f"{_OPS}:qk_norm_rope", ("fp32", "bf16"), rejects=_rope)
    for op in ("gated_residual", "patchify", "unpatchify", "causal_conv3d", "vae_norm_silu", "vae_upsample"):
        yield Kernel(op, "xla", f"{_OPS}:{op}", ("fp32", "bf16"))


def _eight_bit(op: str, name: str, target: str, precisions: tuple[str, ...], format: str) -> Kernel:
    return TpuKernel(
        op, name, f"{_OPS}:{target}", precisions, _matrix, frozenset({format}),
        pack="turbort_tpu.bridge.pack:scaled", format=format,
    )  # fmt: skip


def _matrix(call: Call, device: Device) -> str | None:
    weight = call["weight"]
    if isinstance(weight, TensorSpec) and len(weight.shape) != 2:
        return f"packs weights with 2 axes, not {len(weight.shape)}"
    return None


def _halves(call: Call, device: Device) -> str | None:
    """Attention multiplies 16-bit probabilities and values."""
    for name in ("q", "k", "v"):
        value = call[name]
        if isinstance(value, TensorSpec) and value.dtype != "bfloat16":
            return f"multiplies probabilities and values in bfloat16, {name} is {value.dtype}"
    return None


def _sla(call: Call, device: Device) -> str | None:
    block = call["block"] or (64, 128)
    if block[0] % 16 or block[1] % LANES:
        return f"works on blocks of multiples of 16 queries and {LANES} keys, not {block[0]} and {block[1]}"
    q = call["q"]
    if isinstance(q, TensorSpec) and q.shape[-1] % LANES:
        return f"head_dim {q.shape[-1]} is no multiple of the {LANES} lanes of a vector"
    return _halves(call, device)


def _rope(call: Call, device: Device) -> str | None:
    x, heads = call["x"], call["heads"]
    if isinstance(x, TensorSpec) and heads and (x.shape[-1] // heads) % LANES:
        return f"rotates heads of multiples of {LANES} lanes, not {x.shape[-1] // heads}"
    return None


def _emit(call: Call, device: Device) -> str | None:
    emit = call["emit"]
    if emit is not None and emit not in _ROW_EMITS:
        return f"quantises to {' and '.join(_ROW_EMITS)}, not {emit}"
    return None
