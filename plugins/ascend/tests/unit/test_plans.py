"""The three Ascend profiles resolved by this backend's own tables: which kernel computes what, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from turbort_ascend.device import OPS, make_device

from turbort.backend import Device
from turbort.errors import NoKernelError
from turbort.models.config import Sla
from turbort.models.spec import MODELS
from turbort.plan import Plan
from turbort.planner import Target, make_plan
from turbort.profile import load_profile
from turbort.profile_model import LinearRange
from turbort.registry import Registry

ALL = frozenset(OPS) | {"npugraph"}
CHIPS = {"ascend910": "Ascend910B3", "ascend310p": "Ascend310P3", "ascend950": "Ascend950PR_9589"}


def device(chip: str, *more: str) -> Device:
    return make_device(chip, memory=64 << 30, features=ALL | set(more))


def plan(registry: Registry, profile: str, model: str, *features: str, **changes: object) -> Plan:
    spec = MODELS[model]
    spec = replace(spec, dit=replace(spec.dit, sla=Sla(0.1, (64, 128))))
    wish = load_profile(profile)
    if changes:
        wish = wish.model_copy(update={"precision": wish.precision.model_copy(update=changes)})
    return make_plan(spec, wish, registry, target=Target("ascend", device(CHIPS[profile], *features)))


def kernels(made: Plan, op: str, role: str = "") -> set[str]:
    return {f"{row.kernel.partition('/')[2]}@{row.precision}" for row in made if row.op == op and row.role.startswith(role)}


@pytest.mark.parametrize("model", ["tiny", "wan2.1-t2v-14b"])
def test_ascend910_uses_the_vendor_ops(registry: Registry, model: str) -> None:
    made = plan(registry, "ascend910", model)
    assert kernels(made, "linear", "self") == kernels(made, "linear", "ffn") == {"quant-matmul@w8a8"}
    assert kernels(made, "sla_attention") == {"block-sparse@bf16"}
    assert kernels(made, "attention", "attn.cross") == {"fused-infer@bf16"}
    assert kernels(made, "qk_norm_rope") == {"rotary@bf16"}
    assert all(row.kernel.startswith("ascend/") for row in made)


def test_ascend910_computes_int8_attention_where_triton_is(registry: Registry) -> None:
    made = plan(registry, "ascend910", "wan2.1-t2v-1.3b", "triton-ascend")
    assert kernels(made, "sla_attention") == {"triton-int8@int8"}
    assert not made.fallbacks


def test_turbodiffusions_checkpoints_run_as_they_are_where_triton_is(registry: Registry) -> None:
    made = plan(
        registry, "ascend910", "wan2.1-t2v-1.3b", "triton-ascend", linear=LinearRange(max="w8a8-block128", min="w8a8-block128")
    )
    assert kernels(made, "linear", "self") == {"triton-block128@w8a8-block128"}


@pytest.mark.parametrize(("profile", "taken"), [("ascend910", "weight-quant-matmul@w4a8"), ("ascend950", "quant-matmul@w8a8")])
def test_w4a8_goes_through_the_weight_quant_matmul_where_its_page_names_the_chip(
    registry: Registry, profile: str, taken: str
) -> None:
    made = plan(registry, profile, "wan2.1-t2v-1.3b", linear=LinearRange(max="w4a8", min="w4a8"))
    assert kernels(made, "linear", "self") == kernels(made, "linear", "ffn") == {taken}


@pytest.mark.parametrize("asked", [False, True])
def test_fused_ops_without_a_page_are_used_only_where_asked(registry: Registry, asked: bool) -> None:
    made = plan(registry, "ascend910", "tiny", *(["fused"] if asked else []))
    assert kernels(made, "gelu_quant") == {"gelu-quant@bf16" if asked else "gelu@bf16"}


def test_norms_hand_int8_tokens_to_the_linears(registry: Registry) -> None:
    made = plan(registry, "ascend910", "tiny")
    emitting = {row.op for row in made if row.emit == "int8-token"}
    assert emitting == {"norm_modulate", "layer_norm", "gelu_quant"}


def test_ascend310p_says_why_it_has_no_w8a8(registry: Registry) -> None:
    made = plan(registry, "ascend310p", "wan2.1-t2v-1.3b")
    linear = next(row for row in made if row.op == "linear" and row.role == "self.qkv")
    assert linear.precision == "fp16"
    assert linear.fallback
    assert "不支持pertoken_scale" in str(linear.passed_over)
    assert kernels(made, "attention", "attn.cross") == {"prompt-flash@fp16"}
    assert kernels(made, "sla_attention") == {"gathered@fp16"}


def test_bf16_on_310p_is_refused(registry: Registry) -> None:
    """It steps up to float32 with the reason in the plan, or stops where the profile forbids fallbacks."""
    made = plan(registry, "ascend310p", "tiny", compute="bf16")
    norm = next(row for row in made if row.op == "norm_modulate")
    assert norm.precision == "fp32"
    assert "Ascend310P3 does not compute in bfloat16" in str(norm.passed_over)
    strict = load_profile("ascend310p")
    strict = strict.model_copy(update={"fallback": "error", "precision": strict.precision.model_copy(update={"compute": "bf16"})})
    with pytest.raises(NoKernelError, match="does not compute in bfloat16"):
        make_plan(MODELS["tiny"], strict, registry, target=Target("ascend", device("Ascend310P3")))


def test_ascend950_has_no_block_sparse_op_and_gathers(registry: Registry) -> None:
    made = plan(registry, "ascend950", "wan2.1-t2v-1.3b")
    assert kernels(made, "sla_attention") == {"gathered@bf16"}
    assert kernels(made, "linear", "self") == {"quant-matmul@w8a8"}
