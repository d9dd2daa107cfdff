"""From options to things: registry, model, profile and target device, each with an error a user can act on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from turbort.errors import InputError, TurbortError, UnavailableError, unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turbort.backend import Device
    from turbort.checkpoints.lora import Lora
    from turbort.models.spec import ModelSpec
    from turbort.planner import Target
    from turbort.profile import Profile
    from turbort.registry import Registry

REHEARSE = "add `--on cpu` to rehearse it with reference kernels"


@dataclass(frozen=True)
class Choice:
    """What a command works with."""

    registry: Registry
    profile: Profile
    target: Target


def find_model(name: str, registry: Registry) -> ModelSpec:
    """A built-in model, one of a plugin, or a folder with a model.yaml."""
    from turbort.models.spec import MODELS, get_model

    return get_model(name, {**MODELS, **registry.models} if registry.models else MODELS)


def read_profile(name: str, registry: Registry) -> Profile:
    """The profile of that name or path, checked against the precisions that plugins add, too."""
    from turbort.profile import load_profile

    return load_profile(name, registry.profile_paths, precisions=registry.precisions)


def choose(profile: str | None, on: str | None, *, absent: bool = False) -> Choice:
    """Registry, profile and target for `--profile` and `--on`; detects the device when neither is given.

    With `absent` the device need not be here (see `find_target`).
    """
    from turbort.planner import find_target
    from turbort.registry import Registry

    registry = Registry()
    chosen = read_profile(profile, registry) if profile else pick(registry, on)
    if on is None:
        _require_backend(chosen, registry)
    try:
        return Choice(registry, chosen, find_target(chosen, registry, on, absent=absent))
    except UnavailableError as error:
        raise _with_hint(error, chosen, on) from None


def pick(registry: Registry, on: str | None) -> Profile:
    """The profile that fits the device: that of `on`, or the first accelerator that is there, or the CPU."""
    from turbort.profile import list_profiles, pick_profile

    entries = list_profiles(registry.profile_paths, precisions=registry.precisions)
    return pick_profile(detect(registry, on), entries)


def detect(registry: Registry, on: str | None = None) -> Device:
    """The device to use: accelerators first, by name of their backend, then the CPU. `null` only when asked for."""
    if on is not None:
        name = on.partition(":")[0]
        return registry.devices({"cpu": "reference"}.get(name, name))[0]
    others = sorted(name for name in registry.backends if name not in ("reference", "null"))
    for name in others:
        found = registry.probe(name)
        if isinstance(found, list) and found:
            return found[0]
    return registry.devices("reference")[0]


def _require_backend(profile: Profile, registry: Registry) -> None:
    """UnavailableError when nothing installed supplies the profile's backend at all."""
    wanted = profile.target.backend
    if wanted in registry.backends or wanted in registry.unavailable:
        return
    raise _with_hint(
        UnavailableError(f"no installed plugin supplies backend {wanted}", fix=f"install the plugin that supplies {wanted}"),
        profile,
        None,
        [f"installed backends: {', '.join(sorted(registry.backends))}"],
    )


def _with_hint(error: TurbortError, profile: Profile, on: str | None, more: list[str] | None = None) -> UnavailableError:
    """The same error with what was looked for, and how to go on without the device."""
    tried = list(error.tried)
    if on is None:
        arch = " or ".join(profile.target.arch)
        memory = f" with memory {profile.target.memory}" if profile.target.memory else ""
        tried.insert(
            0, f"looked for: backend {profile.target.backend}, architecture {arch}{memory}, as profile {profile.name} asks"
        )
    fix = error.fix or ""
    if on is None and "--on cpu" not in fix:
        fix = f"{fix}; or {REHEARSE}" if fix else REHEARSE
    return UnavailableError(error.message, tried=[*tried, *(more or [])], fix=fix)


def find_loras(texts: Sequence[str], spec: ModelSpec) -> tuple[Lora, ...]:
    """The LoRAs of `--lora`; InputError for a file that is absent, or an expert that the model lacks."""
    if not texts:
        return ()
    from turbort.checkpoints.lora import parse_lora

    found = tuple(map(parse_lora, texts))
    for lora in found:
        if lora.expert is not None and lora.expert not in spec.experts:
            alone = None if spec.experts else f"leave out {lora.expert}=: {spec.name} has one transformer"
            raise unknown(f"expert of {spec.name}", lora.expert, spec.experts, fix=alone)
        if not lora.path.exists():
            raise InputError(f"--lora {lora.path}: no such file or folder", fix="check the path; a strength follows as FILE:0.8")
    return found
