"""Which call sites are watched and promoted together, and what each would run instead. Decided before weights are loaded.

Sites that read the same quantised activation form a group with its producer: promoting them means that the producer hands
over plain values, too, or the outlier would already have been rounded away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from turbort.kernel import Call, TensorSpec
from turbort.models.sites import record_dit
from turbort.models.spec import ModelSpec
from turbort.plan import Choice, Plan
from turbort.planner import DTYPES, Planner, Target
from turbort.precision import PRECISIONS, SUMS
from turbort.profile import Profile
from turbort.registry import Registry
from turbort.stand_in import steps_up

ONCE = frozenset({"cross.kv"})
"""Roles that run once per prompt and not in a step."""


@dataclass(frozen=True)
class Member:
    """One call site: what the plan runs there, and what runs once it is promoted."""

    now: Choice
    then: Choice


@dataclass(frozen=True)
class Group:
    """Sites that change kernels together.

    Attributes:
        name: path of the first site in the model, without its slot (`blocks.0.self_attn.q`).
        kind: what is sampled: `rows` of a linear's input, or `logits` from the q and k of an attention.
        width: length of a sampled row: input features, or heads x head_dim.
        heads: heads of an attention, 1 otherwise.
        weight_bytes: what the weights of the promoted kernels take.
    """

    name: str
    kind: Literal["rows", "logits"]
    width: int
    heads: int
    members: tuple[Member, ...]
    weight_bytes: int

    @property
    def probe(self) -> str:
        """Path of the site whose arguments are sampled."""
        return self.members[0].now.path


def find_groups(spec: ModelSpec, profile: Profile, registry: Registry, target: Target, plan: Plan) -> tuple[Group, ...]:
    """The groups of a plan: sites of the transformer's blocks with integer activations, and what is next for each."""
    choices = {choice.path: choice for choice in plan}
    watched = {path for path, choice in choices.items() if _watched(choice)}
    if not watched:
        return ()
    width, height = plan.header["size"]
    planner = Planner(profile, registry, target)
    sites = record_dit(
        spec,
        attention=profile.attention,
        dtype=DTYPES[profile.precision.compute],
        width=width,
        height=height,
        frames=plan.header["frames"],
        batch=plan.header["batch"],
    )
    # Sums along with plain values serve a reader at any precision.
    producer = {
        reader: calls[0].path
        for calls in sites
        for reader in calls[0].consumers
        if choices[calls[0].path].emit not in (None, *SUMS)
    }
    together: dict[str, list[list[Call]]] = {}
    for calls in sites:
        if calls[0].path in watched:
            together.setdefault(producer.get(calls[0].path, _parent(calls[0])), []).append(calls)
    found = [_group(key, members, choices, planner) for key, members in together.items()]
    return tuple(group for group in found if group is not None)


def _watched(choice: Choice) -> bool:
    precision = PRECISIONS[choice.precision]
    integer = precision.kind == "attention" or (precision.emit or "").startswith("int8")
    return choice.path.startswith("dit/blocks.") and integer and choice.role not in ONCE


def _parent(call: Call) -> str:
    """Sites of one role in one module read the same input (q, k and v)."""
    return f"{call.path.rpartition('.')[0].rpartition('.')[0]}:{call.role}"


def _group(key: str, sites: Sequence[Sequence[Call]], choices: dict[str, Choice], planner: Planner) -> Group | None:
    members = []
    for calls in sites:
        now = choices[calls[0].path]
        then = planner.at(calls, _next(now, planner.profile.precision.compute))
        if then is None:
            return None
        members.append(Member(now, then))
    if key in choices:
        members.append(Member(choices[key], replace(choices[key], emit=None)))
    first = sites[0][0]
    attention = PRECISIONS[members[0].now.precision].kind == "attention"
    shape = _spec(first, "q" if attention else "x").shape
    return Group(
        name=first.path.partition("/")[2].removesuffix(".op").removesuffix(".attention"),
        kind="logits" if attention else "rows",
        width=prod(shape[2:]) if attention else shape[-1],
        heads=shape[2] if attention else 1,
        members=tuple(members),
        weight_bytes=sum(_bytes(calls[0], member.then) for calls, member in zip(sites, members, strict=False)),
    )


def _next(choice: Choice, compute: str) -> str:
    """The next precision with wider activations: outliers are in those, and more weight bits would not help."""
    bits = PRECISIONS[choice.precision].activation_bits
    return next((name for name in steps_up(choice.precision, compute) if PRECISIONS[name].activation_bits > bits), compute)


def _bytes(call: Call, then: Choice) -> int:
    weight = call["weight"]
    return prod(weight.shape) * PRECISIONS[then.precision].weight_bits // 8 if isinstance(weight, TensorSpec) else 0


def _spec(call: Call, name: str) -> TensorSpec:
    found = call[name]
    assert isinstance(found, TensorSpec)
    return found
