"""A third-party backend lives in its own distribution, and a broken one takes nothing down."""

import json
import zipfile
from pathlib import Path

import pytest

from .conftest import run

pytestmark = pytest.mark.xdist_group("downstream")  # one worker builds the venv, once


def test_the_installed_package_is_the_one_that_runs(installed, tmp_path):
    where = run([installed.python, "-c", "import turbort; print(turbort.__file__)"], cwd=tmp_path).stdout.strip()
    assert Path(where).is_relative_to(installed.packages)


def test_the_wheel_holds_what_the_package_needs(installed):
    names = zipfile.ZipFile(installed.wheels[0]).namelist()
    for needed in ("turbort/py.typed", "turbort/profiles/cpu.yaml", "turbort/profiles/schema.json", "turbort/testing/planted.py"):
        assert needed in names
    strays = [name for name in names if name.startswith(("tests/", "examples/", "docs/", "recipes/", "benchmarks/", "profiles/"))]
    assert not strays
    assert not [name for name in names if "__pycache__" in name]


def test_the_example_passes_conformance(turbort):
    report = json.loads(turbort("check", "example", "--json").stdout)
    assert set(report["counts"]) == {"pass", "unsupported"}
    assert report["counts"]["pass"] > 20
    ids = {row["id"]: row["outcome"] for row in report["results"]}
    assert ids["rms_norm/chunked/bf16/t257-d1536"] == "pass"
    assert ids["rms_norm/chunked/bf16/b2-t33-d1000"] == "unsupported"
    assert ids["backend/light-import"] == "pass"
    assert ids["ledger"] == "pass"


def test_doctor_shows_the_broken_plugin_with_its_reason(turbort):
    rows = {row["check"]: row for row in json.loads(turbort("doctor", "--json").stdout)}
    broken = rows["plugin broken"]
    assert broken["status"] == "warn"
    assert "turbort-broken 0.1.0" in broken["detail"]
    assert "libtoychip.so.2: cannot open shared object file" in broken["detail"]
    assert "turbort-broken" in broken["fix"]
    assert "toy chip" in rows["backend example"]["detail"]
    assert rows["backend reference"]["status"] == "ok"


def test_devices_lists_all_of_them(turbort):
    rows = {row["backend"]: row for row in json.loads(turbort("devices", "--json").stdout)}
    assert rows["example"]["device"] == "toy chip"
    assert "libtoychip" in rows["broken"]["reason"]
    assert {"reference", "null"} <= set(rows)


def test_a_plan_uses_the_examples_kernel_and_names_what_it_lacks(turbort):
    plan = json.loads(turbort("plan", "--model", "wan2.1-t2v-1.3b", "--profile", "cpu", "--on", "example", "--json").stdout)
    kernels = {(group["stage"], group["op"]): group["kernel"] for group in plan["groups"]}
    assert kernels["dit", "rms_norm"] == "example/chunked"
    assert kernels["dit", "linear"].startswith("reference/")


def test_the_broken_backend_by_name_is_an_error_with_the_reason(turbort):
    done = turbort("check", "broken", allowed=(3,))
    assert "libtoychip.so.2" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plugin_author_sees_the_traceback_on_request(turbort):
    done = turbort("devices", allowed=(1,), TURBORT_RAISE_PLUGIN_ERRORS="1")
    assert "turbort_broken/__init__.py" in done.stderr


def test_a_broken_plugin_can_be_left_out(turbort):
    rows = json.loads(turbort("devices", "--json", TURBORT_DISABLE="broken").stdout)
    assert "broken" not in {row["backend"] for row in rows}


def test_the_pytest_door_works_in_a_third_partys_repository(installed):
    tests = Path(__file__).parents[2] / "examples/backend_example/tests"
    command = [installed.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", tests, tests]
    done = run(command, cwd=tests)
    assert " passed" in done.stdout
    assert "rejected" not in done.stdout
