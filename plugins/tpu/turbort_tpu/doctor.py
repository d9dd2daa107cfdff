"""The rows of `turbort doctor` about TPU packages and executors."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from turbort.checks import Check, Outcome
from turbort_tpu.executors import JAX, WAYS, chosen


def checks() -> Iterable[Check]:
    """Which packages are there, in the versions the kernels are checked with, and which executors they allow."""
    return (Check("tpu packages", _packages), Check("tpu executor", _executor))


def _packages() -> Outcome:
    found = {name: _version(name) for name in ("jax", "jaxlib", "libtpu", "torch_xla", "torch_tpu")}
    text = ", ".join(f"{name} {version or 'absent'}" for name, version in found.items())
    if found["jax"] is None:
        return Outcome("off", text, WAYS["jax"].install)
    if found["jax"] != JAX and found["torch_xla"] is None:
        return Outcome("warn", f"{text}; the kernels are checked with jax {JAX}", WAYS["jax"].install)
    return Outcome("ok", text)


def _executor() -> Outcome:
    way = chosen()
    ready = [other.name for other in WAYS.values() if not other.missing(emulated=False)]
    text = f"{way.name}; packages for a TPU are there for {', '.join(ready) or 'none'}"
    return Outcome("ok" if way.name in ready else "off", text, None if way.name in ready else way.install)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
