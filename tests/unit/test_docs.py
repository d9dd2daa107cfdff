"""Documentation that cannot rot: links lead somewhere, examples run, commands and options exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from turbort.cli import app
from turbort.ops import OPS
from turbort.precision import PRECISIONS
from turbort.profile import parse_profile

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
BLOCK = re.compile(r"(<!-- run -->\n)?```(\w+)\n(.*?)```", re.DOTALL)


def name(path):
    return str(path.relative_to(ROOT))


def generated():
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "tools/reference_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    made = set(generated().PAGES)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            path = (page.parent / target).resolve()
            assert path.exists() or (path.is_relative_to(ROOT / "docs") and name(path).removeprefix("docs/") in made), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_examples_are_python_and_profiles(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, language, text in BLOCK.findall(page.read_text()):
        if language == "python":
            code = compile(text, str(page), "exec")
            if run:
                exec(code, {})
        elif language == "yaml" and text.startswith("schema:"):
            assert parse_profile(text.replace("extends: rtx4090.yaml", "target: {backend: cuda}"), "page.yaml").name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_their_options_exist(page):
    for line in re.findall(r"^ {4}(turbort .*)$", page.read_text(), re.MULTILINE):
        command = get_command(app)
        for word in shlex.split(line.partition("#")[0].partition(" > ")[0].replace("[", "").replace("]", "").replace("|", ""))[
            1:
        ]:
            if word.startswith("-") and word.lstrip("-")[0].isalpha():
                known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
                assert word in known, f"{line}: {word}"
            elif word in getattr(command, "commands", {}):
                command = command.commands[word]
        assert command.name != get_command(app).name, line


def test_reference_pages_cover_everything():
    pages = generated()
    assert all(f"## {op}\n" in pages.ops() for op in OPS)
    assert all(f"| `{precision}` |" in pages.precisions() for precision in PRECISIONS)
    assert pages.hooks().count("\n## turbort_") == 6
    assert all(f"## turbort {command}\n" in pages.cli() for command in get_command(app).commands)
    assert "| `precision.linear` |" in pages.profile_keys() or "| **`precision.linear`** |" in pages.profile_keys()
