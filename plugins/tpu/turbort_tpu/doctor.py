"""The row of `turbort doctor` about TPU packages."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from turbort.checks import Check, Outcome
from turbort_tpu.probe import INSTALL, JAX


def checks() -> Iterable[Check]:
    """Which of jax and libtpu are installed, and whether they are the versions the kernels are checked with."""
    return (Check("tpu packages", _packages),)


def _packages() -> Outcome:
    found = {name: _version(name) for name in ("jax", "jaxlib", "libtpu")}
    text = ", ".join(f"{name} {version or 'absent'}" for name, version in found.items())
    if found["jax"] is None:
        return Outcome("off", text, INSTALL)
    if found["jax"] != JAX:
        return Outcome("warn", f"{text}; the kernels are checked with jax {JAX}", INSTALL)
    return Outcome("ok", text)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
