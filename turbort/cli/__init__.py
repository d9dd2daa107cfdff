"""The command line. One file per command, imported when it is called: nothing here imports torch or rich before that."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperGroup

# Summaries by command, in the order of the help text. Module and function have the command's name; a module's `app` is a group.
COMMANDS: Mapping[str, str] = {
    "run": "Make a video from a prompt, or many from a file.",
    "plan": "Show or save what would run at every call site.",
    "profiles": "Hardware profiles: list, show, validate, explain.",
    "models": "List the models turbort knows, and what they make.",
    "download": "Download a model's files with huggingface_hub.",
    "inspect": "Say what weights are: dialect, model, precision per role, size.",
    "quantize": "Convert weights, one at a time, and show how far each moved.",
    "prune": "Keep the tiles of each block matrix that matter most.",
    "calibrate": "Learn what each precision costs at every call site.",
    "devices": "List every backend with its devices, or why it has none.",
    "doctor": "Check Python, torch, packages, profiles, plugins and devices.",
    "check": "Run the conformance suite on a backend.",
    "verify": "Judge a profile against the unquantised run of the same noise.",
    "report": "Show a report: what ran, what the monitor did, and the gates.",
    "bench": "Time one denoising step of a model with random weights.",
    "compile": "Plan a model and compile the plan ahead of time.",
    "version": "Show the versions of turbort, Python, torch and packages.",
}


class _Commands(Mapping[str, Any]):
    """Commands by name, each built when it is asked for: building all of them takes longer than most commands."""

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        module = import_module(f"turbort.cli.{name}")
        if hasattr(module, "app"):
            return typer.main.get_group(module.app)
        alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        alone.command()(getattr(module, name))
        return typer.main.get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Group(TyperGroup):
    """`turbort`, whose help needs none of its commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Commands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


# Plain help: the rich form takes longer to start than everything else together.
app = typer.Typer(
    name="turbort",
    cls=_Group,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def turbort() -> None:
    """Make videos with diffusion transformers on whatever accelerator is there."""


def main() -> None:
    """Entry point of the `turbort` program."""
    for stream in (sys.stdout, sys.stderr):
        # Tables have signs (✓, →) that a console of Latin-1 or of Windows lacks: better a `?` than the end of the program.
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    app()
