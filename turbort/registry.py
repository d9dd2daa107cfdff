"""Discovery: plugins over entry points, each isolated, and the devices, kernels and names they bring."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from turbort import hookspecs
from turbort.backend import BACKEND_API, Backend, Device, Unavailable
from turbort.errors import TurbortError, UnavailableError, unknown
from turbort.kernel import Kernel
from turbort.precision import PRECISIONS, Precision

BUILTIN = {"reference": "turbort.reference", "null": "turbort.null"}


@dataclass(frozen=True)
class Plugin:
    """One entry point: its name, the distribution that brings it, and what became of it."""

    name: str
    target: str
    distribution: str
    version: str
    problem: Unavailable | None = None


class Registry:
    """Everything the installed plugins offer.

    A plugin that fails to import, or that was written for another hook version, becomes an `Unavailable` with
    reason and fix; it never takes the others down. Probing is lazy: a backend looks for its devices when
    somebody asks for them. `extra` adds plugin modules without an entry point (tests, notebooks).
    Environment: `TURBORT_PLUGINS` (comma-separated modules to add), `TURBORT_DISABLE` (names to leave out),
    `TURBORT_RAISE_PLUGIN_ERRORS=1` (raise instead of recording, for plugin authors).
    """

    def __init__(self, extra: Iterable[ModuleType] = ()) -> None:
        self._manager = pluggy.PluginManager(hookspecs.GROUP)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: dict[str, Plugin] = {}
        self._probed: dict[str, list[Device] | Unavailable] = {}
        disabled = set(filter(None, os.environ.get("TURBORT_DISABLE", "").split(",")))
        for plugin in _announced():
            if plugin.name not in disabled:
                self._add(plugin)
        for target in filter(None, os.environ.get("TURBORT_PLUGINS", "").split(",")):
            self._add(Plugin(target.rpartition(".")[2], target, "TURBORT_PLUGINS", ""))
        for module in extra:
            name = module.__name__.rpartition(".")[2]
            self._add(Plugin(name, module.__name__, "extra", ""), module)

    def _add(self, plugin: Plugin, module: ModuleType | None = None) -> None:
        if plugin.name in self.plugins:
            first = self.plugins[plugin.name]
            raise TurbortError(
                f"two plugins are named {plugin.name!r}",
                tried=[f"{row.target} from {row.distribution}" for row in (first, plugin)],
                fix=f"uninstall one of them, or set TURBORT_DISABLE={plugin.name}",
            )
        problem = None
        try:
            loaded = module or importlib.import_module(plugin.target)
            problem = _wrong_api(plugin, loaded)
            if problem is None:
                self._manager.register(loaded, plugin.name)
                self._manager.check_pending()
        except Exception as error:  # a plugin may fail in any way; the reason is kept and shown
            if os.environ.get("TURBORT_RAISE_PLUGIN_ERRORS"):
                raise
            if self._manager.has_plugin(plugin.name):
                self._manager.unregister(name=plugin.name)
            owner = f"{plugin.distribution} {plugin.version}".strip()
            problem = Unavailable(
                f"plugin {plugin.name} ({owner}) failed to load: {type(error).__name__}: {error}",
                f"repair or uninstall {plugin.distribution}, or set TURBORT_DISABLE={plugin.name}",
            )
        self.plugins[plugin.name] = Plugin(plugin.name, plugin.target, plugin.distribution, plugin.version, problem)

    def _hook(self, name: str) -> list[Any]:
        """Flat results of one hook; a plugin whose hook raises is recorded as broken and skipped."""
        found: list[Any] = []
        for plugin_name, module in self._manager.list_name_plugin():
            function = getattr(module, name, None)
            if function is None:
                continue
            try:
                found.extend(function())
            except Exception as error:  # as in _add
                if os.environ.get("TURBORT_RAISE_PLUGIN_ERRORS"):
                    raise
                known = self.plugins[plugin_name]
                problem = Unavailable(
                    f"{name} of plugin {plugin_name} raised {type(error).__name__}: {error}",
                    f"repair or uninstall {known.distribution}",
                )
                self.plugins[plugin_name] = Plugin(known.name, known.target, known.distribution, known.version, problem)
        return found

    @cached_property
    def backends(self) -> Mapping[str, Backend]:
        """Backends by name."""
        found: dict[str, Backend] = {}
        for backend in self._hook("turbort_backends"):
            if backend.name in found:
                raise TurbortError(f"two plugins supply a backend named {backend.name!r}", fix="uninstall one of them")
            found[backend.name] = backend
        return found

    @property
    def unavailable(self) -> Mapping[str, Unavailable]:
        """Plugins that could not be loaded, by name."""
        return {name: plugin.problem for name, plugin in self.plugins.items() if plugin.problem}

    def backend(self, name: str) -> Backend:
        """The backend of that name; one that failed to load raises UnavailableError with its reason."""
        if name in self.backends:
            return self.backends[name]
        if name in self.unavailable:
            problem = self.unavailable[name]
            raise UnavailableError(problem.reason, fix=problem.fix)
        raise unknown("backend", name, [*self.backends, *self.unavailable], fix="`turbort devices` lists what is installed")

    def probe(self, name: str) -> list[Device] | Unavailable:
        """The devices of a backend, or why there are none; asked once and remembered."""
        if name not in self._probed:
            backend = self.backend(name)
            try:
                self._probed[name] = backend.probe()
            except Exception as error:  # noqa: BLE001 - a vendor package may fail in any way
                self._probed[name] = Unavailable(
                    f"probing {name} raised {type(error).__name__}: {error}",
                    f"run `turbort doctor`, then repair the packages of {name}",
                )
        return self._probed[name]

    def devices(self, name: str) -> list[Device]:
        """The devices of a backend; UnavailableError when there are none."""
        found = self.probe(name)
        if isinstance(found, Unavailable):
            raise UnavailableError(f"backend {name} cannot run here: {found.reason}", fix=found.fix)
        if not found:
            raise UnavailableError(f"backend {name} found no device", fix="run `turbort doctor`")
        return found

    def kernels(self, name: str, op: str | None = None) -> list[Kernel]:
        """Kernels of a backend in the order they are tried: priority, then name."""
        rows = self._kernels_of(name)
        return [kernel for kernel in rows if op is None or kernel.op == op]

    def _kernels_of(self, name: str) -> Sequence[Kernel]:
        cache: dict[str, list[Kernel]] = self.__dict__.setdefault("_kernels", {})
        if name not in cache:
            cache[name] = sorted(self.backend(name).kernels(), key=lambda kernel: (-kernel.priority, kernel.name))
        return cache[name]

    @cached_property
    def precisions(self) -> Mapping[str, Precision]:
        return {**PRECISIONS, **{row.name: row for row in self._hook("turbort_precisions")}}

    @cached_property
    def ops(self) -> Mapping[str, Any]:
        """Ops by name, the built-in set and the plugins' (imports torch)."""
        from turbort.ops import OPS

        return {**OPS, **{spec.name: spec for spec in self._hook("turbort_ops")}}

    @cached_property
    def models(self) -> Mapping[str, Any]:
        """Models that plugins add."""
        return {spec.name: spec for spec in self._hook("turbort_models")}

    @cached_property
    def profile_paths(self) -> list[Path]:
        return [Path(path) for path in self._hook("turbort_profiles")]

    @cached_property
    def checks(self) -> list[Any]:
        return self._hook("turbort_checks")


def _announced() -> list[Plugin]:
    """Entry points of group `turbort` sorted by name; the built-in two also where the package runs uninstalled."""
    rows: dict[tuple[str, str], Plugin] = {}
    for entry in metadata.entry_points(group=hookspecs.GROUP):
        dist = entry.dist
        rows[entry.name, entry.value] = Plugin(
            entry.name, entry.value, dist.name if dist else "unknown", dist.version if dist else ""
        )
    for name, target in BUILTIN.items():
        rows.setdefault((name, target), Plugin(name, target, "turbort", ""))
    return sorted(rows.values(), key=lambda plugin: plugin.name)


def _wrong_api(plugin: Plugin, module: ModuleType) -> Unavailable | None:
    """A plugin states `HOOK_API`; one without it is taken to follow the current version."""
    wanted = getattr(module, "HOOK_API", hookspecs.HOOK_API)
    if wanted == hookspecs.HOOK_API and getattr(module, "BACKEND_API", BACKEND_API) == BACKEND_API:
        return None
    newer = "turbort" if wanted > hookspecs.HOOK_API else plugin.distribution
    return Unavailable(
        f"plugin {plugin.name} speaks hook API {wanted}, this turbort speaks {hookspecs.HOOK_API}",
        f"pip install --upgrade {newer}",
    )
