"""Planning needs no device: every shipped profile, refusals in words, fallback as a policy, fused quantisation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from time import process_time
from types import ModuleType

import pytest

from turbort.backend import Backend, Device
from turbort.cli.plan_table import plan_table
from turbort.errors import NoKernelError, UnavailableError
from turbort.hookspecs import hookimpl
from turbort.kernel import Call, Kernel
from turbort.models.spec import MODELS
from turbort.plan import Plan
from turbort.planner import Target, find_target, make_plan
from turbort.profile import Profile, list_profiles, load_profile
from turbort.registry import Registry

FULL = {"float32", "bfloat16", "float16", "int8"}


class Picky(Backend):
    """A device without int8 linears above a width, and without bfloat16 when told so."""

    name = "picky"

    def __init__(self, dtypes: set[str] = FULL, widest: int = 10**9) -> None:
        self.dtypes, self.widest = dtypes, widest

    def probe(self) -> list[Device]:
        return [Device("picky", "Picky 1", "cpu", "p1", dtypes=frozenset(self.dtypes))]

    def kernels(self) -> Iterable[Kernel]:
        def too_wide(call: Call, _: Device) -> str | None:
            width = call["weight"].shape[1]
            return f"K = {width} exceeds {self.widest}" if width > self.widest else None

        floats = ("fp32", "bf16", "fp16")
        yield Kernel("linear", "int8", "x:y", ("w8a8",), rejects=too_wide, priority=5)
        yield Kernel("linear", "float", "x:y", floats)
        for op in ("attention", "sla_attention", "norm_modulate", "layer_norm", "rms_norm", "qk_norm_rope", "gelu_quant"):
            yield Kernel(op, "float", "x:y", floats, emits=("int8-token",))
        for op in ("patchify", "unpatchify", "causal_conv3d", "vae_norm_silu", "vae_upsample"):
            yield Kernel(op, "float", "x:y", floats)


def registry(backend: Backend) -> Registry:
    module = ModuleType("picky_plugin")

    @hookimpl
    def turbort_backends() -> Iterable[Backend]:
        return (backend,)

    vars(module)["turbort_backends"] = turbort_backends
    return Registry(extra=[module])


def profile(**changes: object) -> Profile:
    data = {
        "schema": 1,
        "name": "picky",
        "target": {"backend": "picky"},
        "precision": {"compute": "bf16", "linear": "w8a8", "vae": "bf16", "attention": "bf16"},
        **changes,
    }
    return Profile.model_validate(data)


TINY = MODELS["tiny"]


@pytest.mark.parametrize("name", [info.name for info in list_profiles()])
@pytest.mark.parametrize("model", ["wan2.1-t2v-14b", "wan2.2-t2v-a14b", "wan2.1-i2v-14b"])
def test_every_profile_plans_a_14b_model_without_weights(name: str, model: str) -> None:
    start = process_time()
    plan = make_plan(MODELS[model], load_profile(name), Registry(), backend="null")
    assert process_time() - start < 30  # 1 s; 4 s in the first one, which imports torch
    assert len(plan.choices) > 800
    assert not plan.fallbacks


def test_blocks_get_the_linear_precision_and_the_edges_stay_wide() -> None:
    plan = make_plan(TINY, load_profile("h100"), Registry(), backend="null")
    assert plan["dit/blocks.0.ffn.0.op"].precision == "w8a8"
    assert {plan[f"dit/{site}.op"].precision for site in ("patch_embedding", "head.head", "text_embedding.0")} == {"bf16"}
    assert plan["dit/time_embedding.0.op"].precision == "fp32"
    assert plan["dit/blocks.0.cross_attn.attention"].precision == "bf16"


def test_one_producer_quantises_for_all_its_readers() -> None:
    plan = make_plan(TINY, profile(), registry(Picky()))
    assert plan["dit/blocks.0.norm1.op"].emit == "int8-token"
    assert plan["dit/blocks.0.ffn.gelu"].emit == "int8-token"
    assert plan["dit/head.norm.op"].emit is None


class Summing(Picky):
    """RoPE leaves sums behind for the attentions of `wants`, by the name of the argument."""

    def __init__(self, wants: dict[str, str], emits: tuple[str, ...] = ("sums-64", "sums-128")) -> None:
        super().__init__()
        self.wants, self.emitted = wants, emits

    def kernels(self) -> Iterable[Kernel]:
        for kernel in super().kernels():
            if kernel.op == "sla_attention":
                kernel = replace(kernel, wants=lambda call: self.wants)
            yield replace(kernel, emits=self.emitted) if kernel.op == "qk_norm_rope" else kernel


def test_each_argument_of_an_attention_comes_with_the_sums_it_wants() -> None:
    sparse = profile(attention={"kind": "sla", "topk": 0.1})
    plan = make_plan(TINY, sparse, registry(Summing({"q": "sums-64", "k": "sums-128"})))
    assert plan["dit/blocks.0.self_attn.norm_q.op"].emit == "sums-64"
    assert plan["dit/blocks.0.self_attn.norm_k.op"].emit == "sums-128"
    # Linears go on as before.
    assert plan["dit/blocks.0.norm1.op"].emit == "int8-token"


def test_sums_that_no_kernel_offers_or_nobody_wants_stay_away() -> None:
    sparse = profile(attention={"kind": "sla", "topk": 0.1})
    for backend in (Summing({"q": "sums-64"}, emits=()), Summing({}), Summing({"v": "sums-64"})):
        plan = make_plan(TINY, sparse, registry(backend))
        assert {plan[f"dit/blocks.0.self_attn.norm_{name}.op"].emit for name in "qk"} == {None}
        assert plan["dit/blocks.0.self_attn.v.op"].emit is None


def test_readers_of_different_precisions_keep_the_producer_wide() -> None:
    mixed = profile(precision={"compute": "bf16", "linear": "w8a8", "overrides": {"blocks.0.self_attn.q.*": "bf16"}})
    plan = make_plan(TINY, mixed, registry(Picky()))
    assert plan["dit/blocks.0.self_attn.q.op"].precision == "bf16"
    assert plan["dit/blocks.0.self_attn.q.op"].note == "override blocks.0.self_attn.q.*"
    assert plan["dit/blocks.0.norm1.op"].emit is None
    assert plan["dit/blocks.1.norm1.op"].emit == "int8-token"


def test_a_refusal_is_kept_with_its_number_and_the_plan_steps_up() -> None:
    plan = make_plan(TINY, profile(fallback="allow"), registry(Picky(widest=512)))
    choice = plan["dit/blocks.0.ffn.2.op"]
    assert choice.kernel == "picky/float"
    assert choice.precision == "bf16"
    assert choice.fallback
    assert choice.note == "wanted w8a8"
    assert "K = 1024 exceeds 512" in choice.passed_over.values()
    assert plan["dit/blocks.0.ffn.0.op"].precision == "w8a8"


def test_fallback_error_stops_with_every_candidate() -> None:
    with pytest.raises(NoKernelError) as caught:
        make_plan(TINY, profile(fallback="error"), registry(Picky(widest=512)))
    text = str(caught.value)
    assert "K = 1024 exceeds 512" in text
    assert "fix:" in text


def test_an_op_the_device_lacks_falls_back_to_the_reference() -> None:
    class NoAttention(Picky):
        def kernels(self) -> Iterable[Kernel]:
            return [kernel for kernel in super().kernels() if "attention" not in kernel.op]

    plan = make_plan(TINY, profile(fallback="allow"), registry(NoAttention()))
    assert plan["dit/blocks.0.cross_attn.attention"].kernel.startswith("reference/")
    assert plan["dit/blocks.0.cross_attn.attention"] in plan.fallbacks


def test_a_device_without_bfloat16_never_gets_it() -> None:
    plan = make_plan(TINY, profile(fallback="allow"), registry(Picky(dtypes={"float32", "int8"})))
    assert "bf16" not in {choice.precision for choice in plan if choice.kernel.startswith("picky/")}


def test_a_profile_for_an_absent_device_says_what_was_looked_for() -> None:
    with pytest.raises(UnavailableError) as caught:
        find_target(profile(target={"backend": "picky", "arch": ("q9",)}), registry(Picky()))
    assert "q9" in str(caught.value)
    assert "Picky 1 (p1)" in str(caught.value)
    assert "--on cpu" in str(caught.value)


def test_rehearsal_is_marked() -> None:
    plan = make_plan(TINY, load_profile("ascend910"), Registry(), backend="cpu")
    assert plan.header["rehearsal"] is True
    assert plan.header["backend"] == "reference"
    assert make_plan(TINY, load_profile("cpu"), Registry()).header["rehearsal"] is False


def test_layouts_follow_the_convolutions_and_conversions_are_shown() -> None:
    plan = make_plan(TINY, load_profile("h100"), Registry(), target=find_target_absent("h100"))
    norms = [choice for choice in plan if choice.op == "vae_norm_silu"]
    assert {choice.layout for choice in norms} == {"channels_last"}
    remaining = [(choice.op, choice.converts) for choice in plan if choice.converts]
    # Into the decoder, out of it for the attention in its middle, and back.
    assert sorted(words for _, converts in remaining for words in converts) == [
        "channels_last -> row",
        "row -> channels_last",
        "row -> channels_last",
    ]
    assert set(map(repr, Plan.loads(plan.dumps()))) == set(map(repr, plan))


def find_target_absent(name: str) -> Target:
    return find_target(load_profile(name), Registry(), absent=True)


class Layouts(Picky):
    """Convolutions in channels-last only; norms in either layout, at the same priority."""

    def kernels(self) -> Iterable[Kernel]:
        for kernel in super().kernels():
            if kernel.op in ("causal_conv3d", "vae_upsample"):
                yield Kernel(kernel.op, "float", "x:y", kernel.precisions, layout="channels_last")
            elif kernel.op == "vae_norm_silu":
                yield Kernel(kernel.op, "row", "x:y", kernel.precisions)
                yield Kernel(kernel.op, "last", "x:y", kernel.precisions, layout="channels_last")
            else:
                yield kernel


def test_the_planner_takes_the_kernel_whose_layout_is_there() -> None:
    plan = make_plan(TINY, profile(), registry(Layouts()))
    assert {choice.kernel for choice in plan if choice.op == "vae_norm_silu"} == {"picky/last"}
    assert sum(len(choice.converts) for choice in plan) <= 4


@pytest.mark.parametrize(("policy", "says"), [("warn", True), ("allow", False)])
def test_fallback_warn_warns_where_the_plan_is_shown(policy, says, capsys) -> None:
    plan_table(make_plan(TINY, profile(fallback=policy), registry(Picky(widest=512))))
    shown = capsys.readouterr()
    assert ("8 call sites run on something else" in shown.err) == says
    assert "fallback" in shown.out
