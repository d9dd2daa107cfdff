"""Commands that show things: tables for people, JSON for programs, and a quick start."""

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
HELP = "import sys; sys.argv = ['turbort', '--help']\nfrom turbort.cli import main\ntry: main()\nexcept SystemExit: pass\n"
SMALL = ("--size", "64x64", "--frames", "5")


def test_help_imports_nothing_heavy():
    code = HELP + "heavy = {'torch', 'numpy', 'pydantic', 'rich.table', 'yaml', 'pluggy'} & set(sys.modules)\n"
    code += "sys.exit(str(heavy) if heavy else 0)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for name in ("run", "plan", "profiles", "models", "devices", "doctor", "check", "version"):
        assert name in ended.stdout


def test_help_takes_little_more_processor_time_than_importing_typer():
    """0.11 s against 0.08 s where this was written; a slower machine is slower at both, and what disturbs only adds."""

    def seconds(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    turns = [(seconds(HELP), seconds("import typer")) for _ in range(5)]
    ours, typer = (min(column) for column in zip(*turns, strict=True))
    assert ours < 2 * typer


def test_importing_turbort_imports_no_torch():
    names = "turbort.Registry, turbort.load_profile, turbort.Plan, turbort.hookimpl"
    code = f"import sys, turbort\n{names}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_had():
    import turbort

    for name in turbort.__all__:
        if name != "Session":  # imports the whole engine; tests/e2e does
            assert getattr(turbort, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = turbort.nothing_of_the_kind


def test_profiles_list(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    text = "\n".join(line.rstrip() for line in cli("profiles", "list").out.splitlines()) + "\n"
    golden = GOLDEN / "profiles-list.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_profiles_as_json(cli):
    rows = json.loads(cli("profiles", "list", "--json").out)
    assert {row["profile"]: row["backend"] for row in rows}["tpu-v5e"] == "tpu"
    shown = json.loads(cli("profiles", "show", "ascend910.yaml", "--json").out)
    assert shown["precision"]["linear"]["min"] == "w4a8"
    schema = json.loads(cli("profiles", "schema").out)
    assert "extends" in schema["properties"]


def test_validate_reports_every_file(cli, tmp_path):
    (tmp_path / "bad.yaml").write_text("target: 3\n", encoding="utf-8")
    ended = cli("profiles", "validate", "cpu", "bad.yaml", "h100")
    assert ended.code == 2
    assert ended.out.splitlines() == ["cpu: ok", "bad.yaml: wrong", "h100: ok"]
    rows = json.loads(cli("profiles", "validate", "cpu", "bad.yaml", "--json").out)
    assert [row["ok"] for row in rows] == [True, False]
    assert cli("profiles", "validate", "cpu", "h100").code == 0


def test_a_broken_profile_is_a_row_of_the_list(cli, tmp_path, monkeypatch):
    (tmp_path / "broken.yaml").write_text("targt: 3\n", encoding="utf-8")
    monkeypatch.setenv("TURBORT_PROFILES", str(tmp_path))
    ended = cli("profiles", "list")
    assert ended.code == 0
    assert "unknown key 'targt'" in ended.out


def test_explain_needs_no_device(cli):
    ended = cli("profiles", "explain", "ascend910", "--model", "tiny", *SMALL)
    assert ended.code == 0, ended.err
    assert "w8a8 to w4a8" in ended.out
    assert "planned without a device" in ended.out
    data = json.loads(cli("profiles", "explain", "ascend910", *SMALL, "--json").out)
    assert data["profile"]["name"] == "ascend910"
    linears = [row for row in data["groups"] if row["op"] == "linear" and row["role"] == "ffn"]
    assert [row["precision"] for row in linears] == ["w8a8"]


def test_models(cli):
    rows = json.loads(cli("models", "--json").out)
    assert [row["model"] for row in rows][:2] == ["tiny", "wan2.1-t2v-1.3b"]
    assert "128x128" in cli("models").out


def test_devices(cli):
    rows = {row["backend"]: row for row in json.loads(cli("devices", "--json").out)}
    assert (rows["reference"]["torch"], rows["reference"]["profile"]) == ("cpu", "cpu")
    assert "null device" in cli("devices").out


def test_version(cli):
    assert set(json.loads(cli("version", "--json").out)) >= {"turbort", "python", "torch"}
    assert cli("version").out.startswith("turbort")


def test_doctor_shows_a_broken_plugin_and_everything_else(cli, monkeypatch, tmp_path):
    (tmp_path / "sick_plugin.py").write_text("raise RuntimeError('vendor library is missing')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TURBORT_PLUGINS", "sick_plugin")
    rows = {row["check"]: row for row in json.loads(cli("doctor", "--json").out)}
    assert rows["plugin sick_plugin"]["status"] == "warn"
    assert "vendor library is missing" in rows["plugin sick_plugin"]["detail"]
    assert rows["plugin sick_plugin"]["fix"]
    assert rows["backend reference"]["status"] == rows["profiles"]["status"] == rows["torch"]["status"] == "ok"
    assert "vendor library is missing" in cli("devices").out


def test_a_check_that_raises_is_a_failed_row():
    from turbort.checks import Check, run_checks

    rows = dict(run_checks([Check("bad", lambda: 1 / 0)]))  # type: ignore[arg-type, return-value]
    assert rows["bad"].status == "fail"
    assert "ZeroDivisionError" in rows["bad"].detail


class TestPlan:
    def test_written_plans_compare(self, cli, tmp_path):
        assert cli("plan", "--on", "null", "--profile", "h100", *SMALL, "-o", "a.yaml").code == 0
        assert cli("plan", "--on", "null", "--profile", "a100", *SMALL, "-o", "b.yaml").code == 0
        assert cli("plan", "diff", "a.yaml", "a.yaml").code == 0
        ended = cli("plan", "diff", "a.yaml", "b.yaml")
        assert ended.code == 1
        assert "-profile: h100" in ended.out
        assert "+profile: a100" in ended.out
        assert json.loads(cli("plan", "diff", "a.yaml", "b.yaml", "--json").out)["same"] is False
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml", "b.yaml"]

    def test_sites_show_every_line(self, cli):
        ended = cli("plan", "--on", "null", "--profile", "h100", *SMALL, "--sites")
        assert "dit/blocks.{0-7}.self_attn" in ended.out
        data = json.loads(cli("plan", "--on", "null", "--profile", "h100", *SMALL, "--sites", "--json").out)
        assert sum(row["sites"] for row in data["groups"]) == sum(row["sites"] for row in data["sites"])


class TestCheck:
    ONE = ("check", "reference", "--op", "patchify", "--precision", "fp32")

    def test_list(self, cli):
        ids = cli(*self.ONE, "--list").out.split()
        assert ids
        assert all(case.startswith("patchify/reference/fp32/") for case in ids)

    def test_json_and_markdown(self, cli):
        data = json.loads(cli(*self.ONE, "--json").out)
        assert data["counts"] == {"pass": len(data["results"])}
        assert "| patchify | reference | fp32 |" in cli(*self.ONE, "--markdown").out

    def test_a_failure_is_exit_code_1_and_named(self, cli, monkeypatch):
        from turbort.testing import Outcome, Result, Suite

        monkeypatch.setattr(
            Suite, "run", lambda self, case_id: Result(case_id, Outcome.FAIL, check="budget", message="nmse 1 exceeds 1e-10")
        )
        ended = cli(*self.ONE)
        assert ended.code == 1
        assert "nmse 1 exceeds 1e-10" in ended.out
        assert "fail" in ended.err


def test_a_narrow_terminal_goes_without_columns_and_says_so(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    narrow = cli("plan", "--profile", "h100", "--on", "cpu", *SMALL)
    assert "not shown in 80 columns: " in narrow.err
    assert "emits" not in narrow.out
    assert "precision" in narrow.out
    monkeypatch.setenv("COLUMNS", "200")
    wide = cli("plan", "--profile", "h100", "--on", "cpu", *SMALL)
    assert "not shown" not in wide.err
    assert "emits" in wide.out


def test_a_console_that_lacks_a_sign_ends_no_command():
    poor = {**os.environ, "PYTHONIOENCODING": "latin-1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "turbort", "check", "null", "--op", "gelu_quant"]
    ended = subprocess.run(command, env=poor, capture_output=True, text=True, encoding="latin-1", check=False)
    assert ended.returncode == 0, ended.stderr
    assert "? 11" in ended.stdout


def test_json_loses_nothing_on_a_console_that_lacks_a_sign(monkeypatch):
    from turbort.cli import ui

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1", errors="replace"))
    ui.emit_json({"prompt": "漢字 → é"})
    sys.stdout.flush()
    assert json.loads(raw.getvalue()) == {"prompt": "漢字 → é"}
