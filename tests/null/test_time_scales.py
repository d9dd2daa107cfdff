"""Planning scales shared along time: where, at what cost, and what happens on a backend that cannot."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import pytest

from turbort.backend import Backend, Device
from turbort.errors import InputError, NoKernelError
from turbort.hookspecs import hookimpl
from turbort.kernel import Kernel
from turbort.models.spec import MODELS
from turbort.plan import Plan
from turbort.planner import make_plan
from turbort.profile import Profile, parse_profile
from turbort.reference import reference_kernels
from turbort.registry import Registry

WAN = MODELS["wan2.1-t2v-1.3b"]
FRAMES, TOKENS, WIDTH, FFN = 21, 32760, 1536, 8960


class Without(Backend):
    """The reference's kernels, but for those that share scales along time, in whose place are `others`."""

    name = "without"

    def __init__(self, others: Iterable[Kernel] = ()) -> None:
        self.others = tuple(others)

    def probe(self) -> list[Device]:
        return [Device("without", "Without 1", "cpu", "w1", dtypes=frozenset({"float32", "bfloat16", "float16", "int8"}))]

    def kernels(self) -> Iterable[Kernel]:
        yield from (kernel for kernel in reference_kernels("plain") if kernel.op != "quantize_time")
        yield from self.others


def planned(scales: Any = "time", backend: Backend | None = None, linear: str = "w8a8", **changes: Any) -> Plan:
    precision = {"compute": "bf16", "linear": linear, "vae": "bf16", "activation_scales": scales}
    name = backend.name if backend else "null"
    profile = Profile.model_validate(
        {"schema": 1, "name": "p", "target": {"backend": name}, "precision": precision, **changes},
    )
    module = ModuleType("without_plugin")

    @hookimpl
    def turbort_backends() -> Iterable[Backend]:
        return (backend,) if backend else ()

    vars(module)["turbort_backends"] = turbort_backends
    return make_plan(WAN, profile, Registry(extra=[module]), backend=None if backend else "null")


def shared(plan: Plan) -> dict[str, str]:
    """Short paths of block 3's sites that share, with the bytes their notes speak of."""
    return {
        choice.path.removeprefix("dit/blocks.3."): (choice.note or "").rpartition("frames, ")[2]
        for choice in plan
        if choice.time_scales and choice.path.startswith("dit/blocks.3.")
    }


def test_nothing_is_shared_unless_it_is_asked_for() -> None:
    plan = planned("token")
    assert not any(choice.time_scales for choice in plan)
    assert "time_scales" not in plan.dumps()


def test_every_activation_that_is_quantised_by_tokens_is_shared_and_its_cost_is_said() -> None:
    plan = planned()
    narrow, wide = 2 * TOKENS * WIDTH / 2**20, 2 * TOKENS * FFN / 2**30
    assert shared(plan) == {
        "norm1.op": f"{3 * narrow:.1f}MiB more to move",
        "self_attn.o.op": f"{narrow:.0f}MiB more to move",
        "norm3.op": f"{3 * narrow:.1f}MiB more to move",
        "cross_attn.o.op": f"{narrow:.0f}MiB more to move",
        "norm2.op": f"{3 * narrow:.1f}MiB more to move",
        "ffn.gelu": f"{3 * wide:.1f}GiB more to move",
    }
    assert all(choice.time_scales in (None, "null/null") for choice in plan)
    assert plan["dit/blocks.3.norm1.op"].emit == "int8-token"
    assert plan["dit/blocks.3.self_attn.q.op"].time_scales is None  # reads codes
    assert plan["dit/blocks.3.cross_attn.k.op"].time_scales is None  # reads text
    assert f"shared over {FRAMES} frames" in (plan["dit/blocks.3.norm1.op"].note or "")


def test_globs_name_the_linears_that_read() -> None:
    plan = planned(["blocks.*.ffn.2*", "blocks.3.self_attn.q*"])
    assert list(shared(plan)) == ["ffn.gelu"]  # k and v read what q reads, and are not named
    assert list(shared(planned(["blocks.3.self_attn.[qkv].op", "blocks.3.cross_attn.o*"]))) == ["norm1.op", "cross_attn.o.op"]


def test_plans_remember_it() -> None:
    plan = planned()
    again = Plan.loads(plan.dumps())
    assert again.digest == plan.digest
    assert shared(again) == shared(plan)
    assert plan.diff(planned("token"))


def test_schemes_by_block_cannot_share_and_say_so() -> None:
    plan = planned(linear="w8a8-block128")
    assert not any(choice.time_scales for choice in plan)
    assert "int8-block128 has no scales per token" in (plan["dit/blocks.3.norm1.op"].note or "")


def test_the_reference_steps_in_where_a_backend_has_no_kernel() -> None:
    choice = planned(backend=Without())["dit/blocks.3.norm1.op"]
    assert choice.time_scales == "reference/reference"
    assert choice.fallback
    assert "by reference/reference" in (choice.note or "")
    assert choice.passed_over == {"without@time": "without has no kernel that shares scales along time"}


def test_a_kernel_for_another_scheme_is_passed_over_in_words() -> None:
    fp8 = Kernel("quantize_time", "fp8-only", "turbort.ops:quantize_time", ("bf16",), emits=("fp8-token",))
    narrow = Kernel("quantize_time", "narrow", "turbort.ops:quantize_time", ("fp32",), emits=("int8-token",))
    choice = planned(backend=Without([fp8, narrow]))["dit/blocks.3.ffn.gelu"]
    assert choice.time_scales == "reference/reference"
    assert choice.passed_over == {
        "without/fp8-only@time": "shares scales of fp8-token, not of int8-token",
        "without/narrow@time": "computes fp32, not bf16",
    }


def test_the_policy_may_forbid_that() -> None:
    with pytest.raises(NoKernelError) as error:
        planned(backend=Without(), fallback="error")
    assert "quantize_time" in error.value.message
    assert any("no kernel that shares scales along time" in line for line in error.value.tried)


@pytest.mark.parametrize("wrong", ["place", "[]", "[1]", "{a: b}"])
def test_a_wrong_value_is_refused_with_what_is_allowed(wrong: str) -> None:
    with pytest.raises(InputError) as error:
        parse_profile(f"target: {{backend: cuda}}\nprecision: {{activation_scales: {wrong}}}\n")
    assert "token" in str(error.value.message) + " ".join(error.value.tried)
