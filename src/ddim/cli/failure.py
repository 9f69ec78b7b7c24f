"""Turns an error into one sentence with the command's own flags, and into an exit code."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from .._utils.error_text import first_line, reason_of
from .._utils.errors import DDIMError, InputError, Interrupted, NetworkMemory, out_of_memory
from .signals import exit_code

if TYPE_CHECKING:
    import click

# the flags for a parameter of the library, where they are not its name with dashes; the first that a command has
_FLAGS = {
    "clip_x0": ("--clip",),
    "labels": ("--label", "--to-label"),
    "source_labels": ("--from-label",),
    "prompt": ("--prompt", "--to"),
    "target": ("--to",),
    "source_prompt": ("--from",),
    "options": ("--option",),
    "cross_steps": ("--cross",),
    "self_steps": ("--self",),
    "value_steps": ("--value",),
    "weights": ("--weight", "--weights"),
    "data.path": ("--data",),
    "data.column": ("--column",),
    "data.split": ("--split",),
    "data.prompt": ("--prompt", "--from"),
    "target_labels": ("--to-label",),
    "target_label": ("--to-label",),
}


def speller(command: "click.Command | None") -> Callable[[str], str]:
    """Spells the library's parameters as a command's flags, ``steps`` as ``--steps``; others stay as they are."""
    known = {flag for option in command.params for flag in option.opts} if command else set()

    def spell(parameter: str) -> str:
        ways = (*_FLAGS.get(parameter, ()), "--" + parameter.replace("_", "-"))
        return next((flag for flag in ways if flag in known), parameter)

    return spell


def code_and_sentence(error: BaseException, command: "click.Command | None" = None) -> tuple[int, str]:
    """The exit code and the sentence for an error; the sentence is empty where there is nothing to print.

    Args:
        error: what was raised.
        command: the command whose flags the sentence names.
    """
    if isinstance(error, DDIMError):
        return 2 if isinstance(error, InputError) else 1, error.sentence(speller(command))
    if isinstance(error, KeyboardInterrupt):
        return exit_code(), "Interrupted." if isinstance(error, Interrupted) else str(error) or "Interrupted."
    if isinstance(error, BrokenPipeError):
        _let_go_of_stdout()
        return 141, ""
    if isinstance(error, NetworkMemory):
        known = command is None or speller(command)("batch").startswith("--")
        smaller = "; use a smaller --batch" if known else ""
        return 1, f"There is not enough memory for {error.rows} images in one network call{smaller}."
    if out_of_memory(error):
        return 1, "There is not enough memory."
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{reason_of(error)}"
    said = f": {first_line(error)}" if str(error).strip() else ""
    return 1, f"Unexpected {type(error).__name__}{said} (--debug shows where)."


def say(kind: str, sentence: str) -> None:
    """Prints ``Error: ...`` on stderr, in colour on a terminal."""
    colour = {"Error": typer.colors.RED, "Warning": typer.colors.YELLOW}.get(kind)
    typer.secho(f"{kind}: ", fg=colour, bold=True, nl=False, err=True)
    typer.echo(sentence, err=True)


def _let_go_of_stdout() -> None:
    """Points stdout to nothing: its reader has gone (``| head``), and the interpreter's last flush must not fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Commands(TyperGroup):
    """A group of commands that prints an error as one sentence; the exit code is 2 for wrong input, 1 otherwise."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command that the words name, and remembers it to spell its flags."""
        found = super().resolve_command(ctx, args)
        ctx.meta["ddim.command"] = found[1]  # one mapping serves every nested context
        return found

    def invoke(self, ctx: Any) -> Any:
        """Runs the command, and reports its error."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            # the command-line library raises these for usage errors and exits, and prints them itself
            if isinstance(error, (typer.Exit, typer.Abort)) or hasattr(error, "exit_code"):
                raise
            if ctx.meta.get("ddim.debug") or os.environ.get("DDIM_DEBUG", "") not in ("", "0"):
                if not isinstance(error, KeyboardInterrupt):
                    raise
                traceback.print_exc()  # the sentence below says how to go on
            code, sentence = code_and_sentence(error, ctx.meta.get("ddim.command"))
            if sentence:
                say("Error", sentence)
            raise typer.Exit(code) from None
