"""The command line. One file per command; nothing here imports torch or rich before a command needs it."""

from __future__ import annotations

import typer

from turbort.cli.bench import bench
from turbort.cli.calibrate import calibrate
from turbort.cli.check import check
from turbort.cli.compile import compile
from turbort.cli.devices import devices
from turbort.cli.doctor import doctor
from turbort.cli.download import download
from turbort.cli.inspect import inspect
from turbort.cli.models import models
from turbort.cli.plan import app as plan
from turbort.cli.profiles import app as profiles
from turbort.cli.prune import prune
from turbort.cli.quantize import quantize
from turbort.cli.report import report
from turbort.cli.run import run
from turbort.cli.verify import verify
from turbort.cli.version import version

# Plain help: the rich form takes longer to start than everything else together.
app = typer.Typer(
    name="turbort",
    help="Make videos with diffusion transformers on whatever accelerator is there.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.add_typer(plan, name="plan")
app.add_typer(profiles, name="profiles")
app.command()(models)
app.command()(download)
app.command()(inspect)
app.command()(quantize)
app.command()(prune)
app.command()(calibrate)
app.command()(devices)
app.command()(doctor)
app.command()(check)
app.command()(verify)
app.command()(report)
app.command()(bench)
app.command()(compile)
app.command()(version)


def main() -> None:
    """Entry point of the `turbort` program."""
    app()
