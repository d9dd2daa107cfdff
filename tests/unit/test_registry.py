"""Plugins are isolated: a broken one is recorded with reason and fix, and never takes the others down."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType

import pytest

from turbort.backend import Backend, Device, Unavailable
from turbort.errors import InputError, TurbortError, UnavailableError
from turbort.hookspecs import hookimpl
from turbort.kernel import Kernel
from turbort.registry import Registry


class Toy(Backend):
    name = "toy"

    def __init__(self, devices: list[Device] | Unavailable | Exception) -> None:
        self.found = devices

    def probe(self) -> list[Device] | Unavailable:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def kernels(self) -> Iterable[Kernel]:
        yield Kernel("rms_norm", "slow", "toy:slow", ("fp32",))
        yield Kernel("rms_norm", "fast", "toy:fast", ("fp32",), priority=10)


def plugin(backend: Backend, **extra: object) -> ModuleType:
    module = ModuleType("toy_plugin")

    @hookimpl
    def turbort_backends() -> Iterable[Backend]:
        return (backend,)

    vars(module).update(turbort_backends=turbort_backends, **extra)
    return module


DEVICE = Device("toy", "toy one", "cpu", "t1")


def test_the_built_in_backends_are_there_without_importing_torch() -> None:
    import subprocess

    code = "import sys; from turbort.registry import Registry; r = Registry(); print(sorted(r.backends), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'null', 'reference'" in out
    assert out.strip().endswith("False")


def test_kernels_come_in_order_of_priority() -> None:
    registry = Registry(extra=[plugin(Toy([DEVICE]))])
    assert [kernel.name for kernel in registry.kernels("toy", "rms_norm")] == ["fast", "slow"]


def test_a_plugin_that_fails_to_import_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBORT_PLUGINS", "no_such_module_at_all")
    registry = Registry()
    assert "reference" in registry.backends
    problem = registry.unavailable["no_such_module_at_all"]
    assert "ModuleNotFoundError" in problem.reason
    assert "TURBORT_DISABLE" in problem.fix
    with pytest.raises(UnavailableError, match="failed to load"):
        registry.backend("no_such_module_at_all")


def test_plugin_errors_can_be_raised_for_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBORT_PLUGINS", "no_such_module_at_all")
    monkeypatch.setenv("TURBORT_RAISE_PLUGIN_ERRORS", "1")
    with pytest.raises(ModuleNotFoundError):
        Registry()


def test_a_hook_that_raises_breaks_only_its_plugin() -> None:
    module = ModuleType("bad_plugin")

    @hookimpl
    def turbort_backends() -> Iterable[Backend]:
        raise RuntimeError("vendor library is broken")

    vars(module)["turbort_backends"] = turbort_backends
    registry = Registry(extra=[module])
    assert "reference" in registry.backends
    assert "vendor library is broken" in registry.unavailable["bad_plugin"].reason


def test_a_misspelt_hook_is_found() -> None:
    module = ModuleType("typo_plugin")

    @hookimpl
    def turbort_backend() -> None:
        return None

    vars(module)["turbort_backend"] = turbort_backend
    assert "unknown hook" in Registry(extra=[module]).unavailable["typo_plugin"].reason


def test_another_hook_version_is_refused_with_both_numbers() -> None:
    registry = Registry(extra=[plugin(Toy([DEVICE]), HOOK_API=99)])
    assert "99" in registry.unavailable["toy_plugin"].reason
    assert "pip install --upgrade turbort" in registry.unavailable["toy_plugin"].fix
    assert "toy" not in registry.backends


def test_disabled_plugins_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBORT_DISABLE", "null")
    assert "null" not in Registry().backends


def test_two_backends_of_one_name_are_an_error() -> None:
    first, second = plugin(Toy([DEVICE])), plugin(Toy([DEVICE]))
    second.__name__ = "other_plugin"
    with pytest.raises(TurbortError, match="two plugins supply"):
        _ = Registry(extra=[first, second]).backends


def test_a_backend_that_cannot_run_says_why_and_how_to_fix_it() -> None:
    registry = Registry(extra=[plugin(Toy(Unavailable("no toy in the box", "pip install toy")))])
    with pytest.raises(UnavailableError) as caught:
        registry.devices("toy")
    assert "no toy in the box" in str(caught.value)
    assert caught.value.fix == "pip install toy"
    assert caught.value.exit_code == 3


def test_a_probe_that_raises_becomes_a_reason() -> None:
    registry = Registry(extra=[plugin(Toy(OSError("driver mismatch")))])
    with pytest.raises(UnavailableError, match="driver mismatch"):
        registry.devices("toy")


def test_unknown_backends_name_the_nearest() -> None:
    with pytest.raises(InputError, match="'reference'"):
        Registry().backend("referense")
