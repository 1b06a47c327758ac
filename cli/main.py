"""The application: its commands, its defaults from logitcache.toml, and how it ends."""

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from logitcache import __version__
from logitcache.paths import expand_home

from .application import Application, ApplicationCommand
from .bench import bench
from .calibrate import calibrate
from .config import CONFIG_FILE, read_defaults
from .copy import copy
from .demo import demo
from .derive import derive
from .dump import dump
from .evaluate import evaluate
from .exit_codes import exit_on_error, print_on_sigterm
from .export import export
from .info import info
from .init import init
from .plan import plan
from .report import report
from .select import select
from .stats import stats
from .terminal import forget_notes, open_output
from .threads import fit_threads
from .train import train
from .verify import verify

app = typer.Typer(
    name="logitcache",
    cls=Application,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    init,
    demo,
    plan,
    dump,
    calibrate,
    derive,
    copy,
    select,
    train,
    evaluate,
    export,
    info,
    verify,
    stats,
    report,
    bench,
):
    app.command(cls=ApplicationCommand)(exit_on_error(command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"logitcache {__version__}")
        raise typer.Exit


@app.callback()
@exit_on_error
def main(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help=f"Defaults for every command; ./{CONFIG_FILE} if it is there.",
            parser=expand_home,
            metavar="PATH",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run a large teacher once, keep its top-k logits in Zarr, train students from the cache.

    logitcache dump --teacher vit_l

    logitcache train --student resnet18
    """
    forget_notes()
    fit_threads(context.invoked_subcommand)
    if context.invoked_subcommand != "init":  # which writes such a file, over a damaged one too
        context.default_map = read_defaults(config, context)


def run() -> None:
    """Run the application; the console script of the package."""
    print_on_sigterm()
    if not Path(os.environ.get("XDG_CACHE_HOME", "")).is_absolute():  # libraries would write into this folder
        os.environ.pop("XDG_CACHE_HOME", None)
    warnings.formatwarning = lambda message, *_: (
        f"warning: {message}\n"
    )  # not the line of code that it came from
    with open_output():
        app()
