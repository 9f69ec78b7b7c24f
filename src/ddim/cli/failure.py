"""What went wrong, as one sentence in the command's own words, and the exit code that goes with it."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from .._utils.errors import DDIMError, InputError, Interrupted, NetworkMemory, out_of_memory
from .._utils.foreign import first_line, told
from .signals import exit_code

if TYPE_CHECKING:
    import click

# what commands call a parameter of the library, where it is not its own name with dashes; the first that there is
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
    "weights": ("--weight", "--weights"),
}


def speller(command: "click.Command | None") -> Callable[[str], str]:
    """How a command spells the library's parameters: ``steps`` as ``--steps``; what it has no flag for as it is."""
    known = {flag for option in command.params for flag in option.opts} if command else set()

    def spell(parameter: str) -> str:
        ways = (*_FLAGS.get(parameter, ()), "--" + parameter.replace("_", "-"))
        return next((flag for flag in ways if flag in known), parameter)

    return spell


def code_and_sentence(error: BaseException, command: "click.Command | None" = None) -> tuple[int, str]:
    """The exit code and what to say in the words of ``command``; an empty sentence says nothing."""
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
        return 1, f"The memory does not suffice for {error.rows} in one network call{smaller}."
    if out_of_memory(error):
        return 1, "The memory does not suffice for what was asked."
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{told(error)}"
    said = f": {first_line(error)}" if str(error).strip() else ""
    return 1, f"Unexpected {type(error).__name__}{said} (--debug shows where)."


def say(kind: str, sentence: str) -> None:
    """``Error: ...`` on stderr, in colour on a terminal."""
    colour = {"Error": typer.colors.RED, "Warning": typer.colors.YELLOW}.get(kind)
    typer.secho(f"{kind}: ", fg=colour, bold=True, nl=False, err=True)
    typer.echo(sentence, err=True)


def _let_go_of_stdout() -> None:
    """What reads us has gone (``| head``): the interpreter's last flush must not complain."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Commands(TyperGroup):
    """The group that turns every failure into one sentence and an exit code: 2 for wrong input, 1 for the rest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words name; it is kept, for the spelling of its flags."""
        found = super().resolve_command(ctx, args)
        ctx.meta["ddim.command"] = found[1]  # one mapping serves every nested context
        return found

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            # what the command-line library raises for its own ends: usage errors, exits
            if isinstance(error, (typer.Exit, typer.Abort)) or hasattr(error, "exit_code"):
                raise
            if ctx.meta.get("ddim.debug") or os.environ.get("DDIM_DEBUG", "") not in ("", "0"):
                raise
            code, sentence = code_and_sentence(error, ctx.meta.get("ddim.command"))
            if sentence:
                say("Error", sentence)
            raise typer.Exit(code) from None
