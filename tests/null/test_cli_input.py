"""Bad input ends in one clear sentence with a fix, the right exit code, no traceback, and no file."""

import json

import pytest

PROMPT = ("--prompt", "a red circle moves right")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "no prompt was given"),
        (("--prompt", ""), "the prompt is empty"),
        (("--prompt", " \t\n"), "the prompt is empty"),
        (("--prompt", "caf\udce9"), "not valid text"),
        (("--prompt", "x", "--prompts", "y"), "exclude each other"),
        (("--prompts", "absent.txt"), "cannot read prompts absent.txt"),
        ((*PROMPT, "--size", "100x128"), "width 100 is not a multiple of 16"),
        ((*PROMPT, "--size", "128x0"), "height 0 is not a multiple of 16"),
        ((*PROMPT, "--size", "wide"), "'wide' is not WIDTHxHEIGHT"),
        ((*PROMPT, "--frames", "32"), "frames 32 is not 4k+1"),
        ((*PROMPT, "--frames", "0"), "frames 0 is not 4k+1"),
        ((*PROMPT, "--steps", "9"), "steps 9 is not from 1 to 4"),
        ((*PROMPT, "--fps", "0"), "fps 0 is not from 1 to 240"),
        ((*PROMPT, "--guidance", "nan"), "guidance nan"),
        ((*PROMPT, "--seed", "-5"), "seed -5 is not from 0"),
        ((*PROMPT, "--model", "tinny"), "did you mean 'tiny'"),
        ((*PROMPT, "--model", "wan2.1-i2v-14b"), "continues an image"),
        ((*PROMPT, "--sampler", "unipc"), "no settings for sampler 'unipc'"),
        ((*PROMPT, "--profile", "asend910"), "did you mean 'ascend910'"),
        ((*PROMPT, "--profile", "./absent.yaml"), "no such file"),
        ((*PROMPT, "--on", "refrence"), "did you mean 'reference'"),
        ((*PROMPT, "--on", "cpu:7"), "has no device '7'"),
        ((*PROMPT, "--plan", "absent.yaml"), "cannot read plan absent.yaml"),
        ((*PROMPT, "-o", "absent/out.mp4"), "the folder"),
        ((*PROMPT, "-o", "out.avi"), "unknown video format '.avi'"),
        ((*PROMPT, "-o", "out"), "unknown video format"),
        ((*PROMPT, "-o", "."), "--out . names no file"),
        ((*PROMPT, "-o", "out.gif", "--report", "./out.gif"), "--report and video out.gif are both"),
        ((*PROMPT, "-o", "out.gif", "--record-policy", "out.report.json"), "--record-policy and --report are both"),
        ((*PROMPT, "--report", "absent/r.json"), "the folder"),
        ((*PROMPT, "--weights", "."), "the files of tiny are not in"),
        ((*PROMPT, "--lora", "absent.safetensors", "--dry-run"), "--lora absent.safetensors: no such file"),
        ((*PROMPT, "--lora", "high=absent.safetensors"), "unknown expert 'high' of tiny"),
    ],
)
def test_run(cli, tmp_path, args, words):
    ended = cli("run", *args)
    assert ended.code == 2
    assert words in ended.err
    assert "fix: " in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_overwrites_no_file_that_it_reads(cli, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moves right\n")
    ended = cli("run", "--prompts", prompts, "--report", prompts, "--frames", "1")
    assert ended.code == 2
    assert "--report and --prompts are both" in ended.err
    assert prompts.read_text() == "a red circle moves right\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", *PROMPT, "--stepz", "4"), "No such option"),
        (("run", *PROMPT, "--steps", "four"), "--steps"),
        (("rum",), "No such command"),
        (("profiles", "show"), "Missing argument"),
    ],
)
def test_usage(cli, args, words):
    ended = cli(*args)
    assert ended.code == 2
    assert words in ended.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("plan", "--size", "30x30"), "not a multiple of 16"),
        (("plan", "--frames", "2"), "not 4k+1"),
        (("plan", "--batch", "0", "--on", "null"), "batch 0 is not from 1 to 64"),
        (("plan", "--batch", "1000000", "--on", "null"), "batch 1000000 is not from 1 to 64"),
        (("plan", "--on", "null", "-o", "absent/plan.yaml"), "the folder"),
        (("plan", "diff", "a", "b"), "cannot read plan a"),
        (("profiles", "show", "h1000"), "did you mean 'h100'"),
        (("profiles", "explain", "cpu", "--model", "wan"), "unknown model 'wan'"),
        (("check", "refrence"), "did you mean 'reference'"),
        (("check", "reference", "--op", "atention"), "no case for --op atention"),
    ],
)
def test_other_commands(cli, tmp_path, args, words):
    ended = cli(*args)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert "fix: " in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_profile_names_file_line_and_nearest_name(cli, tmp_path):
    (tmp_path / "mine.yaml").write_text("target: {backend: reference}\nprecision:\n  linera: w8a8\n", encoding="utf-8")
    for args in (
        ("run", *PROMPT, "--profile", "mine.yaml"),
        ("profiles", "validate", "mine.yaml"),
        ("plan", "--profile", "mine"),
    ):
        ended = cli(*args)
        assert ended.code == 2
        assert "mine.yaml:3: unknown key 'linera' in precision; did you mean 'linear'?" in ended.err


def test_a_bad_line_of_a_prompt_file_is_named(cli, tmp_path):
    (tmp_path / "p.jsonl").write_text('a red circle moves right\n{"prompt": "x", "stps": 2}\n', encoding="utf-8")
    ended = cli("run", "--prompts", "p.jsonl")
    assert ended.code == 2
    assert "p.jsonl:2: unknown option 'stps'; did you mean 'steps'" in ended.err


def test_two_jobs_may_not_share_a_file(cli, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "out": "a.mp4"}\n{"prompt": "y", "out": "./a.mp4"}\n', encoding="utf-8")
    ended = cli("run", "--prompts", "p.jsonl")
    assert ended.code == 2
    assert "jobs 1 and 2 both write" in ended.err


def test_an_output_folder_that_may_not_be_written(cli, tmp_path, monkeypatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    ended = cli("run", *PROMPT)
    assert ended.code == 2
    assert "Permission denied" in ended.err


class TestNoDevice:
    def test_without_the_device_exit_3_says_what_was_looked_for_and_how_to_go_on(self, cli, tmp_path, monkeypatch):
        monkeypatch.setenv("TURBORT_DISABLE", "ascend")
        ended = cli("run", *PROMPT, "--profile", "ascend910.yaml")
        assert ended.code == 3
        assert "looked for: backend ascend, architecture Ascend910B* or Ascend910_93* with memory >=32GiB" in ended.err
        assert "--on cpu" in ended.err
        assert list(tmp_path.iterdir()) == []

    def test_another_device_of_the_backend_is_not_enough(self, cli, tmp_path):
        (tmp_path / "mine.yaml").write_text("target: {backend: reference, arch: z80}\n", encoding="utf-8")
        ended = cli("plan", "--profile", "mine")
        assert ended.code == 3
        assert "z80" in ended.err
        assert "--on cpu" in ended.err

    def test_on_cpu_rehearses(self, cli):
        ended = cli("plan", "--profile", "ascend910.yaml", "--on", "cpu", "--frames", "5", "--size", "64x64", "--json")
        assert ended.code == 0, ended.err
        data = json.loads(ended.out)
        assert (data["rehearsal"], data["backend"], data["profile"]) == (True, "reference", "ascend910")
        assert "w8a8" in {row["precision"] for row in data["groups"] if row["op"] == "linear"}
        assert "rehearsal" in cli("plan", "--profile", "ascend910.yaml", "--on", "cpu", "--frames", "5", "--size", "64x64").out


def test_debug_lets_the_traceback_through(cli, monkeypatch):
    from turbort.errors import InputError

    monkeypatch.setenv("TURBORT_DEBUG", "1")
    with pytest.raises(InputError):
        cli("run", *PROMPT, "--frames", "2")
