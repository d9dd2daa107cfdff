"""Requests are checked before anything heavy: sizes, counts, prompts, prompt files."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from turbort.errors import InputError
from turbort.job import Job
from turbort.models.spec import MODELS
from turbort.request import check_frames, check_job, check_size, grammar_warning, parse_size, read_prompts

WAN = MODELS["wan2.1-t2v-1.3b"]
TINY = replace(MODELS["tiny"], sampler="rcm")
QUICK = examples(60)


def test_checking_imports_no_torch():
    code = "import sys, turbort.request, turbort.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("text", "size"), [("832x480", (832, 480)), (" 16 X 16 ", (16, 16)), ("128*64", (128, 64))])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "832", "832x", "x480", "832x480x3", "-16x16", "16.0x16", "axb", "9999999x16"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        parse_size(text)


def refusal(check, *values):
    """The value that the error suggests, or None where the check passes."""
    try:
        check(*values, WAN)
    except InputError as error:
        return (error.fix or "").split()[-1]
    return None


@QUICK
@given(st.integers(-64, 9000), st.integers(-64, 9000))
def test_the_suggested_size_is_accepted(width, height):
    fix = refusal(check_size, width, height)
    assert (fix is None) == (width % 16 == height % 16 == 0 and 0 < min(width, height) <= max(width, height) <= 8192)
    if fix is not None:
        check_size(*parse_size(fix), WAN)


@QUICK
@given(st.integers(-20, 5000))
def test_the_suggested_number_of_frames_is_accepted(frames):
    fix = refusal(check_frames, frames)
    assert (fix is None) == (frames % 4 == 1 and 1 <= frames <= 4097)
    if fix is not None:
        check_frames(int(fix), WAN)


def test_ti2v_needs_multiples_of_32():
    with pytest.raises(InputError, match="multiple of 32"):
        check_size(1264, 704, MODELS["wan2.2-ti2v-5b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  \n"}, "prompt is empty"),
        ({"prompt": "x" * 30_000}, "30000 characters"),
        ({"prompt": "caf\udce9"}, "not valid text"),
        ({"width": 100}, "width 100 is not a multiple of 16"),
        ({"height": 0}, "height 0 is not a multiple"),
        ({"frames": 0}, "frames 0 is not 4k"),
        ({"frames": 34}, "frames 34 is not 4k"),
        ({"steps": 0}, "steps 0 is not from 1 to 4"),
        ({"steps": 5}, "rCM sampler has schedules of 1 to 4"),
        ({"fps": 0}, "fps 0"),
        ({"fps": 1000}, "fps 1000"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**63}, "seed"),
        ({"guidance": -1.0}, "guidance -1"),
        ({"guidance": float("nan")}, "guidance nan"),
    ],
)
def test_bad_jobs(change, message):
    job = replace(Job("a red circle moves right"), **change)
    with pytest.raises(InputError, match=message) as caught:
        check_job(job, TINY)
    assert caught.value.fix


def test_other_samplers_take_more_steps():
    check_job(Job("x", steps=50), WAN.with_sampler("unipc"))


class TestPromptFile:
    BASE = Job("", seed=7, frames=33)

    def read(self, tmp_path, text):
        path = tmp_path / "prompts.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_prompts(path, self.BASE, TINY)

    def test_lines_and_json(self, tmp_path):
        options = {"prompt": "two", "seed": 3, "size": "64x32", "guidance": 2}
        lines = ["# a comment", "", "a red circle moves right\r", json.dumps(options)]
        jobs = self.read(tmp_path, "\n".join(lines))
        assert [job.prompt for job in jobs] == ["a red circle moves right", "two"]
        assert [job.seed for job in jobs] == [7, 3]
        assert (jobs[1].width, jobs[1].height, jobs[1].guidance, jobs[1].frames) == (64, 32, 2, 33)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"prompt": "x", "sead": 1}', "unknown option 'sead'; did you mean 'seed'"),
            ('{"prompt": "x", "seed": true}', "seed: True is not a whole number"),
            ('{"prompt": "x", "seed": 1.5}', "seed: 1.5 is not a whole number"),
            ('{"prompt": "x", "seed": 1, "seed": 2}', "given twice"),
            ('{"prompt": "x", "guidance": NaN}', "guidance nan"),
            ('{"prompt": "x", "size": "65x64"}', "width 65"),
            ('{"prompt": "x", "frames": 32}', "frames 32"),
            ('{"prompt": ""}', "prompt is empty"),
            ('{"seed": 1}', "'prompt' is missing"),
            ('{"prompt": "x"', "not valid JSON"),
            ('{"prompt": "\\ud800"}', "not valid text"),
            ('{"a": ' * 2000, "not valid JSON"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path, line, message):
        with pytest.raises(InputError, match=message) as caught:
            self.read(tmp_path, f"good\n\n{line}\n")
        assert f"{tmp_path / 'prompts.txt'}:3: " in caught.value.message

    @pytest.mark.parametrize("text", ["", "\n\n# only a comment\n"])
    def test_no_prompt_at_all(self, tmp_path, text):
        with pytest.raises(InputError, match="holds no prompt"):
            self.read(tmp_path, text)

    def test_not_utf8(self, tmp_path):
        with pytest.raises(InputError, match=r":2: not UTF-8"):
            self.read(tmp_path, b"good\n\xff\xfe\n")

    def test_absent(self, tmp_path):
        with pytest.raises(InputError, match="cannot read prompts"):
            read_prompts(tmp_path / "absent", self.BASE, TINY)

    @QUICK
    @given(st.binary(max_size=120))
    def test_any_bytes(self, tmp_path_factory, raw):
        path = tmp_path_factory.mktemp("fuzz") / "p"
        path.write_bytes(raw)
        try:
            jobs = read_prompts(path, self.BASE, TINY)
        except InputError:
            return
        assert all(job.prompt.strip() for job in jobs)


def test_prompts_outside_a_grammar_are_named_with_examples(tmp_path):
    grammar = tmp_path / "grammar.json"
    grammar.write_text(json.dumps({"pattern": "(?i)^a (red|blue) dot$", "examples": ["a red dot"]}), encoding="utf-8")
    spec = replace(TINY, prompt_grammar=grammar)
    assert grammar_warning(["a red dot", "A BLUE dot"], spec) is None
    text = grammar_warning(["a red dot", "a cat", "a dog"], spec)
    assert text is not None
    assert "'a cat' and 1 more" in text
    assert "- a red dot" in text
    assert grammar_warning(["a cat"], replace(TINY, prompt_grammar=None)) is None
