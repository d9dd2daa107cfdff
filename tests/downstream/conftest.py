"""A venv as a user has it: the built wheel and two third-party plugins, beside the packages already installed here."""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """Programs of a venv into which the wheels were installed; nothing is downloaded."""
    base = tmp_path_factory.mktemp("downstream")
    wheels = [
        build(folder, base / "wheels") for folder in (ROOT, ROOT / "examples/backend_example", ROOT / "examples/backend_broken")
    ]
    venv.create(base / "venv", with_pip=False, symlinks=True)
    python = base / "venv" / "bin" / "python"
    packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip())
    # torch and the other dependencies come from the environment of the tests. Its own editable turbort is not
    # seen: a path listed in a .pth file adds that folder only, and does not read the .pth files in it.
    here = [path for path in (*site.getsitepackages(), site.getusersitepackages()) if Path(path).is_dir()]
    (packages / "borrowed.pth").write_text("\n".join(here) + "\n")
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", packages, *wheels])
    return SimpleNamespace(python=python, packages=packages, turbort=[python, "-m", "turbort"], wheels=wheels)


def build(folder, target):
    """The wheel of a distribution, built with the hatchling that is installed here."""
    before = set(target.glob("*.whl")) if target.exists() else set()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        target,
        folder,
    ]
    run(command)
    (wheel,) = set(target.glob("*.whl")) - before
    return wheel


def run(command, **options):
    """A finished process; its output is shown when it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TURBORT"))}
    environment |= {"OMP_NUM_THREADS": "1", **options.pop("environment", {})}
    allowed = options.pop("allowed", (0,))
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment, timeout=300, **options
    )
    assert done.returncode in allowed, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def turbort(installed, tmp_path_factory):
    """`turbort(*arguments)` in that venv, away from the checkout; returns the finished process."""
    away = tmp_path_factory.mktemp("away")

    def call(*arguments, allowed=(0,), **environment):
        return run([*installed.turbort, *arguments], cwd=away, allowed=allowed, environment=environment)

    return call
