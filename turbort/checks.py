"""Rows of `turbort doctor`: what a check is, and those that need no backend. No torch until a check runs."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "off"]
PACKAGES = ("numpy", "pydantic", "pyyaml", "pluggy", "rich", "typer", "safetensors", "tokenizers", "transformers", "av")
LITTLE_SPACE = 2 * 2**30


@dataclass(frozen=True)
class Outcome:
    """What a check found: `off` means a part that is absent and need not be here; `fail` means turbort cannot work."""

    status: Status
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Check:
    """One row of `turbort doctor`. `run` may import vendor packages and may raise: an exception is shown as `fail`."""

    name: str
    run: Callable[[], Outcome]

    def outcome(self) -> Outcome:
        """What `run` found, or its exception as a failure."""
        try:
            return self.run()
        except Exception as error:  # noqa: BLE001 - a check may fail in any way; doctor shows every row
            return Outcome("fail", f"{type(error).__name__}: {error}", "report this to the author of the check")


def builtin_checks() -> list[Check]:
    """The checks every installation has."""
    return [
        Check("python", _python),
        Check("torch", _torch),
        Check("packages", _packages),
        Check("profiles", _profiles),
        Check("temporary folder", _temporary),
    ]


def _python() -> Outcome:
    return Outcome("ok", f"{platform.python_version()} on {platform.platform(terse=True)} ({platform.machine()})")


def _torch() -> Outcome:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001 - a broken vendor extension can raise anything at torch's import
        text = f"cannot import torch: {type(error).__name__}: {error}"
        extension = "entry point" in str(error) or "TORCH_DEVICE_BACKEND_AUTOLOAD" in str(error)
        fix = "set TORCH_DEVICE_BACKEND_AUTOLOAD=0 and run again" if extension else 'pip install "torch>=2.9"'
        return Outcome("fail", text, fix)
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    detail = f"{torch.__version__}, {torch.get_num_threads()} threads"
    return Outcome("ok", detail) if release >= (2, 9) else Outcome("fail", detail, 'pip install --upgrade "torch>=2.9"')


def _packages() -> Outcome:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Outcome("fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Outcome("ok", ", ".join(found))


def _profiles() -> Outcome:
    from turbort.profile import list_profiles

    rows = list_profiles()
    broken = [row.problem for row in rows if row.problem]
    if broken:
        return Outcome("warn", "; ".join(broken), "correct the file, or remove it from TURBORT_PROFILES")
    shipped = sum(row.origin == "turbort" for row in rows)
    if not shipped:
        return Outcome("fail", "the profiles that come with turbort are not there", "install turbort again")
    return Outcome("ok", f"{len(rows)} readable")


def _temporary() -> Outcome:
    folder = tempfile.gettempdir()
    with tempfile.TemporaryFile():
        free = shutil.disk_usage(folder).free
    detail = f"{folder}, {free / 2**30:.1f} GiB free"
    return Outcome("ok", detail) if free >= LITTLE_SPACE else Outcome("warn", detail, "free some space, or set TMPDIR")


def run_checks(checks: list[Check]) -> Iterator[tuple[str, Outcome]]:
    """Name and outcome of each check, in order."""
    for check in checks:
        yield check.name, check.outcome()
