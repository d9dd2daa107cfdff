"""What a run's monitors may do: the profile's wish, limited by the backend and the memory."""

from __future__ import annotations

from dataclasses import replace

from turbort.backend import Backend
from turbort.guard.groups import find_groups
from turbort.guard.monitor import Mode, Watch
from turbort.guard.policy import Policy
from turbort.guard.strength import Strengths
from turbort.memory import Forecast, forecast
from turbort.memory_beside import Second
from turbort.models.spec import ModelSpec
from turbort.plan import Plan
from turbort.planner import Target
from turbort.profile import Profile
from turbort.registry import Registry
from turbort.units import format_bytes


def watch_of(
    spec: ModelSpec,
    profile: Profile,
    plan: Plan,
    registry: Registry,
    target: Target,
    memory: Forecast,
    policy: Policy | None = None,
) -> Watch:
    """The watch of a run; InputError for a policy that does not fit it.

    A site without room for a second weight is only warned about, and so is every site of a backend whose compiled step cannot
    change kernels. Streamed blocks are not watched: their weights come and go.
    """
    wish = profile.monitor
    strengths = _strengths(profile, plan) if policy is None else None
    adapts = strengths is not None and strengths.works
    if policy is None and wish.on_outlier == "ignore" and not adapts:
        return Watch("off", wish.outlier_share, strengths=strengths)
    backend = registry.backend(target.backend)
    why = _cannot(backend, memory)
    groups = () if why else find_groups(spec, profile, registry, target, plan)
    if policy is not None:
        policy.check(spec.name, plan.digest, [group.name for group in groups])
        return Watch("replay", wish.outlier_share, groups, policy, why)
    if why:
        return Watch("off", wish.outlier_share, note=why, strengths=_without(strengths, why))
    if strengths is not None and adapts:
        strengths.check([group.name for group in groups])
    modes: dict[str, Mode] = {"promote": "promote", "warn": "warn", "ignore": "off"}
    watch = Watch(modes[wish.on_outlier], wish.outlier_share, groups, strengths=strengths)
    room = None if memory.budget is None else memory.budget - memory.needed
    wanted = forecast(plan, spec, profile, memory.residency, second_of(watch, plan)).needed - memory.needed
    if room is not None and wanted > room:
        note = f"second weights would take {format_bytes(wanted)} and {format_bytes(max(0, room))} are left: outliers only warn"
        mode: Mode = "warn" if watch.mode == "promote" else watch.mode
        return replace(watch, mode=mode, note=note, strengths=_without(strengths, "second weights do not fit"))
    return watch


def second_of(watch: Watch, plan: Plan) -> Second:
    """The second kernels that a run loads; none where its monitor only looks."""
    if not watch.switches:
        return Second()
    then = {member.now.path: member.then for group in watch.groups for member in group.members}
    return Second(watch.weight_bytes, replace(plan, choices=tuple(then.get(choice.path, choice) for choice in plan)))


def _strengths(profile: Profile, plan: Plan) -> Strengths | None:
    """The plan's levels where the profile wants them; a note where the plan was made without."""
    if not profile.adaptive.enabled:
        return None
    return Strengths.of(plan.header) or Strengths("clip", "", 0, note="the plan was made without levels")


def _without(strengths: Strengths | None, why: str) -> Strengths | None:
    return None if strengths is None else Strengths(strengths.per, "", 0, note=strengths.note or why)


def _cannot(backend: Backend, memory: Forecast) -> str:
    if not backend.switches_kernels:
        return f"a compiled step of backend {backend.name} cannot change kernels"
    return "blocks are streamed from the host" if memory.residency.offload else ""
