"""`turbort run` around the engine: files, ledger, report, summary, interruption. The engine itself is a stand-in."""

import json
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest

from turbort.io import atomic_text
from turbort.job import Event, Result

PROMPTS = "a red circle moves right\na blue square moves left\na green star spins\n"
SMALL = ("--size", "64x64", "--frames", "5")


class Engine:
    """Stands in for `turbort.session.Session`: writes a file per job; `fail` maps a job's number to what it raises."""

    fail: ClassVar[dict[int, BaseException]] = {}
    made: ClassVar[list[str]] = []
    opened: ClassVar[list[dict]] = []

    def __init__(self, spec, plan):
        self.spec, self.plan = spec, plan

    @classmethod
    def open(cls, spec, profile, **options):
        cls.opened.append(options)
        return cls(spec, options["plan"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def generate(self, jobs, on_event):
        results = []
        for number, job in enumerate(jobs):
            on_event(Event("sample", 1, 4, number, 2**30))
            if number in self.fail:
                raise self.fail[number]
            atomic_text(job.out, job.prompt)
            self.made.append(job.prompt)
            on_event(Event("write", 1, 1, number))
            results.append(Result(job.resolved(self.spec), job.out, {"sample": 1.0}))
        return results

    def report(self):
        return {
            "report": 1,
            "plan": {**self.plan.header, "digest": self.plan.digest},
            "fallbacks": [],
            "seconds": {"load": 0.5, "sample": 1.0},
            "peak_bytes": {"sample": 2**30},
        }


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """The stand-in, with the embedded model's files under another folder."""
    monkeypatch.setattr(Engine, "fail", {})
    monkeypatch.setattr(Engine, "made", [])
    monkeypatch.setattr(Engine, "opened", [])
    module = types.ModuleType("turbort.session")
    module.Session = Engine
    monkeypatch.setitem(sys.modules, "turbort.session", module)
    from turbort.models.tiny import ASSETS

    (tmp_path / "weights").symlink_to(ASSETS)
    return Engine


@pytest.fixture
def run(cli, engine, tmp_path):
    (tmp_path / "p.txt").write_text(PROMPTS, encoding="utf-8")
    return lambda *args: cli("run", "--weights", "weights", "--on", "cpu", *SMALL, *args)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "p.txt")


def test_one_prompt_makes_a_file_and_a_report(run, tmp_path):
    ended = run("--prompt", "a red circle moves right", "-o", "red.mp4", "--seed", "3")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == ["red.mp4"]
    assert files(tmp_path) == ["red.mp4", "red.report.json"]
    assert json.loads((tmp_path / "red.report.json").read_text(encoding="utf-8"))["plan"]["model"] == "tiny"
    for words in (
        "plan ",
        "made 1 video of",
        "load 0.50 s, sample 1.00 s",
        "seconds of video made per second",
        "1GiB at most",
        "red.report.json",
    ):
        assert words in ended.err


def test_quiet_says_only_where_the_video_is(run):
    ended = run("--prompt", "x", "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "out.mp4\n", "")


def test_json_summary(run):
    data = json.loads(run("--prompt", "x", "--json", "--quiet").out)
    assert data["videos"] == [{"path": "out.mp4", "prompt": "x", "seed": 0, "frames": 5, "fps": 16}]
    assert data["seconds"] == {"load": 0.5, "sample": 1.0}
    assert data["realtime"] > 0


def test_the_summary_says_what_the_monitor_and_the_levels_did():
    from turbort.cli.summary import summary

    event = {"step": 2, "action": "promote", "share": 0.4, "sites": ["dit/a", "dit/b"]}
    monitor = {"note": "", "transformers": [{"events": [event, {**event, "step": 1}, {**event, "action": "demote"}]}]}
    steps = [{"level": 1}, {"level": 0}, {"level": 0}]
    adaptive = {"enabled": True, "signal": "error", "levels": [{}, {}], "videos": [{"steps": steps}]}
    receipt = {"seconds": {}, "plan": {"digest": "1"}, "fallbacks": [], "monitor": monitor, "adaptive": adaptive}
    data = summary([], [receipt], 1.0, Path("r.json"))
    assert data["monitor"] == ["2 call sites run at the next precision, from step 1, 2 on; up to 40% outliers"]
    assert data["adaptive"] == ["3 steps by error: 2 at level 0, 1 at level 1"]
    off = {**receipt, "monitor": {"note": "no room"}, "adaptive": {"enabled": False, "note": "no calibration"}}
    data = summary([], [off], 1.0, Path("r.json"))
    assert (data["monitor"], data["adaptive"]) == (["no room"], ["off: no calibration"])


def test_the_report_can_go_elsewhere(run, tmp_path):
    assert run("--prompt", "x", "--report", "r.json").code == 0
    assert files(tmp_path) == ["out.mp4", "r.json"]


def test_a_prompt_file_makes_numbered_files(run, engine, tmp_path):
    ended = run("--prompts", "p.txt", "-o", "v.gif")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == ["v-000.gif", "v-001.gif", "v-002.gif"]
    assert engine.made == PROMPTS.splitlines()
    assert files(tmp_path) == ["v-000.gif", "v-001.gif", "v-002.gif", "v.jobs.jsonl", "v.report.json"]


def test_interrupted_runs_go_on_where_they_stopped(run, engine, tmp_path):
    engine.fail = {2: KeyboardInterrupt()}
    ended = run("--prompts", "p.txt")
    assert ended.code == 130
    assert "interrupted" in ended.err
    assert "Traceback" not in ended.err
    assert files(tmp_path) == ["out-000.mp4", "out-001.mp4", "out.jobs.jsonl"]
    engine.fail, engine.made[:] = {}, []
    ended = run("--prompts", "p.txt")
    assert ended.code == 0
    assert "2 of 3 videos are there already" in ended.err
    assert engine.made == ["a green star spins"]
    assert ended.out.splitlines() == ["out-000.mp4", "out-001.mp4", "out-002.mp4"]
    engine.made[:] = []
    assert run("--prompts", "p.txt").code == 0
    assert engine.made == []
    assert run("--prompts", "p.txt", "--force").code == 0
    assert len(engine.made) == 3


@pytest.mark.parametrize("change", [("--seed", "1"), ("--profile", "h100"), ("--fps", "8"), ("--steps", "2")])
def test_other_options_are_other_jobs(run, engine, change):
    assert run("--prompts", "p.txt").code == 0
    engine.made[:] = []
    assert run("--prompts", "p.txt", *change).code == 0
    assert len(engine.made) == 3


def test_a_deleted_or_changed_video_is_made_again(run, engine, tmp_path):
    assert run("--prompts", "p.txt").code == 0
    engine.made[:] = []
    (tmp_path / "out-001.mp4").unlink()
    (tmp_path / "p.txt").write_text(PROMPTS.replace("green", "red"), encoding="utf-8")
    assert run("--prompts", "p.txt").code == 0
    assert engine.made == ["a blue square moves left", "a red star spins"]


def test_a_damaged_ledger_only_costs_time(run, engine, tmp_path):
    assert run("--prompts", "p.txt").code == 0
    engine.made[:] = []
    (tmp_path / "out.jobs.jsonl").write_bytes(b'\xff\n{"out": 1}\n[]\n{"out": "out-000.mp4", "ke')
    assert run("--prompts", "p.txt").code == 0
    assert len(engine.made) == 3


def test_jobs_of_different_shapes_get_a_plan_each(run, engine, tmp_path):
    lines = [{"prompt": "a"}, {"prompt": "b", "size": "32x32"}, {"prompt": "c", "seed": 1}]
    (tmp_path / "p.txt").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert run("--prompts", "p.txt").code == 0
    assert engine.made == ["a", "c", "b"]
    report = json.loads((tmp_path / "out.report.json").read_text(encoding="utf-8"))
    assert [run["plan"]["size"] for run in report["runs"]] == [[64, 64], [32, 32]]


def test_a_full_disk_is_exit_code_2(run, engine):
    from turbort.io.atomic import write_error

    engine.fail = {0: write_error("out.mp4", OSError(28, "No space left on device"))}
    ended = run("--prompt", "x")
    assert ended.code == 2
    assert "the disk is full" in ended.err


def test_dry_run_shows_the_plan_and_makes_nothing(run, engine, tmp_path):
    ended = run("--prompt", "x", "--dry-run")
    assert ended.code == 0
    assert "sla_attention" in ended.out or "attention" in ended.out
    assert (engine.opened, files(tmp_path)) == ([], [])
    data = json.loads(run("--prompt", "x", "--dry-run", "--json").out)
    assert data["plans"][0]["frames"] == 5


def test_a_rehearsal_is_labelled_everywhere(run, tmp_path):
    ended = run("--prompt", "x", "--profile", "ascend910.yaml")
    assert ended.code == 0
    assert "warning: rehearsal: the precisions of ascend910" in ended.err
    assert "timings mean nothing" in ended.err.splitlines()[-2]
    assert json.loads((tmp_path / "out.report.json").read_text(encoding="utf-8"))["plan"]["rehearsal"] is True


class TestReplay:
    def test_a_plan_brings_its_model_profile_and_device(self, cli, engine, tmp_path):
        assert cli("plan", "--profile", "h100", "--on", "cpu", *SMALL, "-o", "plan.yaml").code == 0
        ended = cli("run", "--prompt", "x", "--plan", "plan.yaml", "--weights", "weights", *SMALL)
        assert ended.code == 0, ended.err
        (opened,) = engine.opened
        assert opened["plan"].header["profile"] == "h100"
        assert opened["on"].backend == "reference"

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (("--size", "32x32", "--frames", "5"), "size: the plan says [64, 64], this run [32, 32]"),
            (("--size", "64x64", "--frames", "9"), "frames: the plan says 5, this run 9"),
            ((*SMALL, "--profile", "cpu"), "compute: the plan says bf16, this run fp32"),
        ],
    )
    def test_a_plan_for_something_else_is_refused(self, cli, engine, args, words):
        assert cli("plan", "--profile", "h100", "--on", "cpu", *SMALL, "-o", "plan.yaml").code == 0
        ended = cli("run", "--prompt", "x", "--plan", "plan.yaml", "--weights", "weights", *args)
        assert ended.code == 2
        assert words in ended.err


def test_prompts_outside_the_grammar_are_warned_about(run):
    assert "warning: 'a cat'" in run("--prompt", "a cat").err
    assert "warning" not in run("--prompt", "a red circle moves right").err


def test_progress_is_live_where_a_person_watches(run, monkeypatch):
    from turbort.cli import ui

    monkeypatch.setattr(ui, "interactive", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    text = run("--prompts", "p.txt").err
    assert "sampling video 1 of 3" in text
    assert "1GiB" in text


@pytest.mark.parametrize("command", [("run", "-p", "a red circle moves right"), ("calibrate", "--prompts", "prompts.txt")])
def test_a_device_without_values_makes_no_video(cli, tmp_path, command):
    (tmp_path / "prompts.txt").write_text("a red circle moves right\n")
    ended = cli(*command, "--on", "null", "--frames", "1")
    assert ended.code == 2
    assert "backend null computes nothing" in ended.err
    assert "fix: " in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_quiet_says_nothing(cli):
    what = ("-p", "a red circle moves right", "--frames", "1", "--steps", "1", "-o", "out.gif")
    ended = cli("run", *what, "--record-policy", "policy.yaml", "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "out.gif\n", "")
