"""``ddim``: the command with all its subcommands. Nothing heavy is imported until one of them runs."""

import io
import sys
from typing import Annotated

import typer

from .. import __version__
from . import batch, demo, edit, evaluate, interpolate, invert, reconstruct, sample, studio, tables, train
from .command import DEBUG, Command, remember_debug
from .failure import Commands
from .groups import grouped
from .signals import as_ctrl_c, exit_code, forget

app = typer.Typer(
    name="ddim",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ddim {__version__}")
        raise typer.Exit


@app.callback(epilog="[dim]ddim COMMAND --help describes a command. To begin: ddim sample, then ddim demo.[/dim]")
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", callback=remember_debug, help=DEBUG)] = False,
) -> None:
    """Diffusion that runs both ways: sample images, invert real ones, reconstruct, edit and interpolate them."""


for function in (
    sample.sample,
    invert.invert,
    reconstruct.reconstruct,
    interpolate.interpolate,
    edit.edit,
    train.train,
    tables.models,
    tables.methods,
    demo.demo,
    studio.studio,
):
    app.command(function.__name__, cls=Command)(grouped(function))
app.add_typer(batch.app)
app.add_typer(evaluate.app)


def main() -> None:
    """Runs the command line; the entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters still gets an answer
    try:
        with as_ctrl_c():
            app(prog_name="ddim")
    except KeyboardInterrupt:  # before a command began, with --debug, or while it ended
        raise SystemExit(exit_code()) from None
    except SystemExit as error:
        if error.code == 130:  # what the command-line library makes of it in the first two cases
            raise SystemExit(exit_code()) from None
        raise
    finally:
        forget()


if __name__ == "__main__":
    main()
