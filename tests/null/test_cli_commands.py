"""The list of commands, from which the help text is made without loading any of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from turbort import cli
from turbort.cli import COMMANDS

# Modules that commands share and that name their only function after themselves.
SHARED = {"__init__", "choose", "memory_table", "plan_table", "summary"}


def commands_in(folder: Path) -> set[str]:
    """Modules that define a function of their own name, or an `app`."""
    found = set()
    for path in folder.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            function = isinstance(node, ast.FunctionDef) and node.name == path.stem
            group = isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "app" for t in node.targets)
            if function or group:
                found.add(path.stem)
    return found


def test_every_command_is_listed() -> None:
    assert commands_in(Path(cli.__file__).parent) - SHARED == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself(cli, name):
    ended = cli(name, "--help")
    assert ended.code == 0
    assert f"turbort {name}" in ended.out


def test_help_lists_every_command_on_a_line_of_its_own(cli):
    lines = cli("--help").out.splitlines()
    for name, summary in COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in lines), name


def test_a_misspelt_command_is_told_its_neighbour(cli):
    ended = cli("plna")
    assert ended.code == 2
    assert "Did you mean 'plan'" in ended.err
