"""The unquantised run that a profile is judged against: reference functions in the profile's compute precision."""

from __future__ import annotations

from turbort.plan import Choice, Plan
from turbort.precision import PRECISIONS
from turbort.profile import Profile
from turbort.target import FALLBACK_BACKEND

KERNEL = f"{FALLBACK_BACKEND}/{FALLBACK_BACKEND}"


def baseline_plan(plan: Plan, profile: Profile) -> Plan:
    """The same call sites, each with its op's reference function and nothing quantised.

    Sparse attention stays sparse: which keys a query sees is another question than how precisely. Kernels are those of
    the reference backend, so a backend's own mistake cannot be on both sides of the comparison.
    """
    choices = tuple(_plain(choice, profile) for choice in plan)
    return Plan({**plan.header, "profile": f"{profile.name} (baseline)", "notes": []}, choices)


def baseline_profile(profile: Profile) -> Profile:
    """The profile for the baseline's session: text encoder in the compute precision, neither outlier monitor nor levels."""
    compute = profile.precision.compute
    precision = profile.precision.model_copy(
        update={"text": compute if PRECISIONS[profile.precision.text].kind != "float" else profile.precision.text}
    )
    monitor = profile.monitor.model_copy(update={"on_outlier": "ignore"})
    adaptive = profile.adaptive.model_copy(update={"enabled": False})
    graph = profile.graph.model_copy(update={"capture": False})
    memory = profile.memory.model_copy(update={"tier_boundary": None})
    changed = {"precision": precision, "monitor": monitor, "adaptive": adaptive, "graph": graph, "memory": memory}
    return profile.model_copy(update=changed)


def _plain(choice: Choice, profile: Profile) -> Choice:
    quantised = PRECISIONS[choice.precision].kind != "float"
    return Choice(
        path=choice.path,
        op=choice.op,
        role=choice.role,
        precision=profile.precision.compute if quantised else choice.precision,
        kernel=KERNEL,
        shapes=choice.shapes,
    )


def is_changed(choice: Choice, plain: Choice) -> bool:
    """Whether a site of the profile's plan computes otherwise than the baseline's."""
    return (choice.kernel, choice.precision, choice.emit) != (plain.kernel, plain.precision, plain.emit)
