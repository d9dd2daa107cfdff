"""What is said of a chip, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
from turbort_ascend import device
from turbort_ascend.backend import Ascend
from turbort_ascend.device import find_devices, make_device
from turbort_ascend.soc import family_of

from turbort.backend import Device, Unavailable

CHIPS = {"310P": "Ascend310P3", "A2": "Ascend910B3", "A3": "Ascend910_9391", "A5": "Ascend950PR_9589"}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Ascend310P3", "310P"), ("Ascend910B1", "A2"), ("Ascend910B4-1", "A2"), ("Ascend910_9391", "A3"),
        ("Ascend910_9362", "A3"), ("Ascend950PR_9589", "A5"), ("Ascend950DT_9571", "A5"), ("Ascend910_9589", "A5"),
    ],
)  # fmt: skip
def test_a_chip_belongs_to_its_family(name: str, family: str) -> None:
    found = family_of(name)
    assert found is not None
    assert found.name == family


def test_a_chip_nobody_knows_gets_no_family_and_little_trust() -> None:
    assert family_of("Ascend910A") is None
    unknown = make_device("Ascend910A")
    assert unknown.dtypes == {"float32", "float16"}
    assert unknown.details["family"] == "unknown chip"


@pytest.mark.parametrize(
    ("family", "dtype", "computes"),
    [
        ("310P", "bfloat16", False),
        ("310P", "float16", True),
        ("A2", "bfloat16", True),
        ("A3", "float8_e4m3fn", False),
        ("A5", "float8_e4m3fn", True),
    ],
)
def test_dtype_truth_table(family: str, dtype: str, computes: bool) -> None:
    assert (dtype in make_device(CHIPS[family]).dtypes) is computes


def test_graphs_only_where_torch_npu_has_them_and_the_family_may() -> None:
    both = frozenset({"npugraph"})
    assert "graph" in make_device("Ascend910B3", features=both).features
    assert "graph" not in make_device("Ascend910B3").features
    assert "graph" not in make_device("Ascend310P3", features=both).features


def test_an_emulated_device_says_so_in_its_name() -> None:
    found = make_device("Ascend910B3", emulated=True)
    assert found.name == "Ascend910B3 (emulated)"
    assert "emulated" in found.features
    assert Ascend().explain(found)["arithmetic"] == "emulated"


def test_without_torch_npu_there_is_a_reason_and_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    found = find_devices()
    assert isinstance(found, Unavailable)
    assert "not installed" in found.reason
    assert found.fix.startswith("pip install torch-npu==")


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (ImportError("libhccl.so: cannot open shared object file: No such file or directory"), "set_env.sh"),
        (RuntimeError("torch_npu 2.13.0 was built for torch 2.13.0"), "version equals your torch's"),
    ],
)
def test_a_torch_npu_that_does_not_load_is_unavailable_and_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, error: Exception, fix: str
) -> None:
    def broken() -> object:
        raise error

    monkeypatch.setattr(device, "find_spec", lambda name: object())
    monkeypatch.setattr(device, "load_torch_npu", broken)
    found = find_devices()
    assert isinstance(found, Unavailable)
    assert str(error)[:20] in found.reason
    assert fix in found.fix


def test_no_card_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = ModuleType("torch")
    torch.npu = type("npu", (), {"is_available": staticmethod(lambda: False)})  # type: ignore[attr-defined]
    monkeypatch.setattr(device, "find_spec", lambda name: object())
    monkeypatch.setattr(device, "load_torch_npu", lambda: torch)
    found = find_devices()
    assert isinstance(found, Unavailable)
    assert "npu-smi" in found.fix


def test_importing_the_plugin_loads_no_torch() -> None:
    code = """
import sys, turbort_ascend
for backend in turbort_ascend.turbort_backends():
    list(backend.kernels())
print("torch" in sys.modules, "torch_npu" in sys.modules)
"""
    path = ":".join(filter(None, sys.path))
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
    )
    assert answer.stdout.split() == ["False", "False"]


def test_autoload_is_put_back() -> None:
    import os

    before = os.environ.get(device.AUTOLOAD)
    with device._no_autoload():
        pass
    assert os.environ.get(device.AUTOLOAD) == before


def test_device_is_what_the_core_expects() -> None:
    found = make_device("Ascend910B3", index=3)
    assert isinstance(found, Device)
    assert found.torch_name == "npu:3"
    assert found.backend == "ascend"
