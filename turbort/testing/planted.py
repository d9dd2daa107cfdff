"""A backend of known-wrong kernels, with the check that must find each: the suite's own test.

It is a plugin module like any other: `Registry(extra=[turbort.testing.planted])`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from turbort.backend import Backend, Device
from turbort.hookspecs import hookimpl
from turbort.kernel import Kernel, load_target

_WRONG = "turbort.testing.wrong:"


@dataclass(frozen=True)
class Planted:
    """One mistake: where it sits, the check meant to find it, and a sample that shows it.

    `function` defaults to `name`. `op` and `precision` are those of the kernel.
    """

    name: str
    op: str
    precision: str
    check: str
    sample: str = "*"
    function: str = ""
    pack: str = ""
    emits: tuple[str, ...] = ()
    rejects: str = ""

    def kernel(self) -> Kernel:
        """The kernel that makes this mistake."""
        return Kernel(
            self.op,
            self.name,
            self.function or _WRONG + self.name,
            (self.precision,),
            rejects=load_target(_WRONG + self.rejects) if self.rejects else None,
            pack=_WRONG + self.pack if self.pack else None,
            emits=self.emits,
        )


PLANTED = (
    Planted("scale_off_by_one_percent", "rms_norm", "bf16", "budget", "t257-d1536"),
    Planted("wrong_eps", "rms_norm", "bf16", "budget", "t65-d768-tiny"),
    Planted("masked_lanes_in_variance", "norm_modulate", "bf16", "budget", "t65-d1536-mean"),
    Planted("one_pass_variance", "layer_norm", "bf16", "budget", "t65-d1536-mean"),
    Planted("first_gate_for_the_batch", "gated_residual", "bf16", "budget", "b2-t33-d1000"),
    Planted("half_split_rope", "qk_norm_rope", "bf16", "budget", "t7-h40"),
    Planted("sums_in_another_order", "qk_norm_rope", "bf16", "emit", "t257-h12", emits=("sums-64",)),
    Planted("norm_per_head", "qk_norm_rope", "bf16", "budget", "t7-h40"),
    Planted("erf_gelu", "gelu_quant", "fp32", "budget", "t7-d5120"),
    Planted("cache_ignored", "causal_conv3d", "bf16", "budget", "c16-o16-4x8x8-cache2"),
    Planted("tail_rows_zero", "linear", "bf16", "budget", "t257-k1536-n264"),
    Planted("k_tail_dropped", "linear", "w4a8", "one-hot", "t5-k333-n77"),
    Planted("transposed_tile_in_packing", "linear", "w4a8", "one-hot", "t1-k1536-n256",
            "turbort.ops.linear:linear_w4a8", pack="transposed_tile"),
    Planted("bias_dropped_with_residual", "linear", "bf16", "budget", "t129-k384-n256-residual"),
    Planted("first_token_scale_for_all", "linear", "w8a8", "budget", "t17-k256-n128-nobias"),
    Planted("float_tokens_only", "linear", "w8a8", "quantised-x", "t17-k256-n128-nobias"),
    Planted("wraps_instead_of_saturating", "quantize", "bf16", "budget", "t7-d5120-int8-token", emits=("int8-token",)),
    Planted("one_scale_for_all_tokens", "quantize", "bf16", "budget", "t65-d768-spread-int8-token", emits=("int8-token",)),
    Planted("scales_per_token_over_time", "quantize_time", "bf16", "shared", "f9-p64-d256-int8-token", emits=("int8-token",)),
    Planted("emits_inverse_scales", "rms_norm", "bf16", "emit", "t7-d5120", emits=("int8-token",)),
    Planted("softmax_without_scale", "attention", "bf16", "budget", "b2-q130-k130-h3"),
    Planted("uniform_attention", "attention", "bf16", "peaked", "b2-q130-k130-h3"),
    Planted("padding_attended", "attention", "bf16", "budget", "q1021-k33-h2-cross"),
    Planted("topk_without_floor", "sla_attention", "bf16", "budget", "t640-h2-k1-floor"),
    Planted("weakest_blocks", "sla_attention", "bf16", "budget", "t512-h2-k50"),
    Planted("stale_result", "gated_residual", "bf16", "stale", "t65-d768-tiny"),
    Planted("shared_output_buffer", "gated_residual", "bf16", "fresh", "t65-d768-tiny"),
    Planted("input_mutated", "gated_residual", "bf16", "inputs", "t65-d768-tiny"),
    Planted("last_row_unwritten", "gated_residual", "bf16", "finite", "t65-d768-tiny"),
    Planted("writes_past_the_end", "patchify", "bf16", "bounds", "c16-9x16x16"),
    Planted("different_every_time", "patchify", "bf16", "determinism", "c16-9x16x16"),
    Planted("strides_ignored", "patchify", "bf16", "strides", "c16-9x16x16"),
    Planted("wrong_dtype", "unpatchify", "bf16", "form", "c16-9x8x8"),
    Planted("raises_on_accepted_calls", "unpatchify", "bf16", "runs", "c16-9x8x8"),
    Planted("refuses_without_a_reason", "unpatchify", "bf16", "refusal", "c16-9x8x8",
            "turbort.ops:unpatchify", rejects="refuses_without_a_reason"),
)  # fmt: skip


class PlantedErrors(Backend):
    """Every kernel of this backend is wrong."""

    name = "planted"

    def probe(self) -> list[Device]:
        return [Device(self.name, "CPU", "cpu", "cpu", dtypes=frozenset({"float32", "bfloat16", "float16"}))]

    def kernels(self) -> Iterable[Kernel]:
        return [row.kernel() for row in PLANTED]


@hookimpl
def turbort_backends() -> Iterable[Backend]:
    """The backend of this module."""
    return (PlantedErrors(),)
