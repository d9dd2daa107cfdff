"""The six hooks of turbort. A plugin is a module that implements any of them with `@turbort.hookimpl`.

A plugin announces itself with an entry point in group `turbort`; the entry point's name is the backend's
name, and the word used in `target.backend` of a profile.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from turbort.backend import Backend
    from turbort.checks import Check
    from turbort.models.spec import ModelSpec
    from turbort.op import OpSpec
    from turbort.precision import Precision

HOOK_API = 1
GROUP = "turbort"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def turbort_backends() -> Iterable[Backend]:
    """Backends this plugin supplies; constructing one must not import its vendor package."""
    return ()


@hookspec
def turbort_ops() -> Iterable[OpSpec]:
    """Ops beyond the built-in set."""
    return ()


@hookspec
def turbort_precisions() -> Iterable[Precision]:
    """Precisions beyond the built-in table."""
    return ()


@hookspec
def turbort_models() -> Iterable[ModelSpec]:
    """Models beyond the built-in ones."""
    return ()


@hookspec
def turbort_profiles() -> Iterable[Path]:
    """Folders or files with further hardware profiles."""
    return ()


@hookspec
def turbort_checks() -> Iterable[Check]:
    """Rows for `turbort doctor`."""
    return ()
