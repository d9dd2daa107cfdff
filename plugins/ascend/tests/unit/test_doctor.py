"""What `turbort doctor` says of an Ascend installation."""

from __future__ import annotations

import pytest
from turbort_ascend import doctor, turbort_checks
from turbort_ascend.device import make_device

from turbort.backend import Unavailable
from turbort.errors import UnavailableError


def rows() -> dict[str, tuple[str, str, str | None]]:
    return {check.name: (found.status, found.detail, found.fix) for check in turbort_checks() for found in [check.outcome()]}


def test_without_torch_npu_every_row_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda: None)
    monkeypatch.setattr(doctor, "has_triton", lambda: False)
    assert {status for status, _, _ in rows().values()} == {"off"}


def test_a_broken_torch_npu_is_a_warning_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda: "2.13.0")
    monkeypatch.setattr(doctor, "find_devices", lambda: Unavailable("does not load", "source set_env.sh"))
    assert rows()["ascend device"] == ("warn", "does not load", "source set_env.sh")


@pytest.mark.parametrize("same", [True, False])
def test_versions_must_agree(monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    import torch

    release = torch.__version__.partition("+")[0]
    monkeypatch.setattr(doctor, "_installed", lambda: f"{release}.post7" if same else "1.11.0")
    monkeypatch.setattr(doctor, "find_devices", lambda: [make_device("Ascend910B3")])
    status, detail, fix = rows()["ascend device"]
    assert status == ("ok" if same else "warn")
    assert "Ascend910B3" in detail
    assert (fix is None) is same


def test_a_missing_compiler_costs_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise UnavailableError("no C compiler was found", fix="install gcc")

    monkeypatch.setattr(doctor, "_installed", lambda: "2.13.0")
    monkeypatch.setattr(doctor, "compiler", none)
    assert rows()["ascend pool"] == ("warn", "no C compiler was found", "install gcc")
