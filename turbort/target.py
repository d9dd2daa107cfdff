"""Where a plan is for: the device of a profile, or one that stands in for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from turbort.backend import Device
from turbort.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from turbort.profile import Profile
    from turbort.registry import Registry

FALLBACK_BACKEND = "reference"


@dataclass(frozen=True)
class Target:
    """Where a plan is for: the backend asked, one of its devices, and whether this rehearses another platform."""

    backend: str
    device: Device
    rehearsal: bool = False


def find_target(profile: Profile, registry: Registry, on: str | None = None, *, absent: bool = False) -> Target:
    """The device a profile runs on: its own backend, or `on` (`cpu` = the reference backend) as a rehearsal.

    `on` may number one of the backend's devices (`cuda:1`). With `absent`, a backend that can describe the profile's
    device without having one (`Backend.stand_in`) does so; such a target is for plans only. Raises InputError for a
    number that is not there, UnavailableError when that backend has no device here, with the hint to rehearse.
    """
    try:
        return _present_target(profile, registry, on)
    except UnavailableError:
        backend = registry.backends.get(on or profile.target.backend)
        described = backend.stand_in(profile.target.arch) if absent and backend else None
        if described is None:
            raise
        return Target(described.backend, described)


def with_values(target: Target) -> Target:
    """The same target; InputError for a device that has shapes and no values, on which nothing can be made."""
    if target.device.torch_name == "meta":
        fix = f"run with `--on cpu`, or see the plan with `turbort plan --on {target.backend}`"
        raise InputError(f"backend {target.backend} computes nothing", fix=fix)
    return target


def _present_target(profile: Profile, registry: Registry, on: str | None) -> Target:
    wanted = profile.target.backend
    asked, _, index = (on or wanted).partition(":")
    name = {"cpu": FALLBACK_BACKEND}.get(asked, asked)
    rehearsal = name != {"cpu": FALLBACK_BACKEND}.get(wanted, wanted)
    devices = registry.devices(name)
    if index:
        devices = [_numbered(devices, index, name)]
    matching = devices if rehearsal else [device for device in devices if _matches(profile, device)]
    if not matching:
        found = [f"found {device.name} ({device.arch})" for device in devices]
        raise UnavailableError(
            f"profile {profile.name} wants {wanted} {' or '.join(profile.target.arch)}",
            tried=found,
            fix="choose another profile, or add `--on cpu` to rehearse it",
        )
    return Target(name, matching[0], rehearsal)


def _numbered(devices: Sequence[Device], index: str, name: str) -> Device:
    if not index.isdecimal() or int(index) >= len(devices):
        raise InputError(
            f"backend {name} has no device {index!r}",
            tried=[f"{name}:{number} is {device.name}" for number, device in enumerate(devices)],
            fix=f"choose {name}:0" + (f" to {name}:{len(devices) - 1}" if len(devices) > 1 else ""),
        )
    return devices[int(index)]


def _matches(profile: Profile, device: Device) -> bool:
    return not profile.target.arch or any(fnmatchcase(device.arch, pattern) for pattern in profile.target.arch)
