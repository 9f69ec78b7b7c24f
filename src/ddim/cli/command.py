"""A command of ``ddim``: it takes the output flags by itself, and is known while it runs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .._utils.errors import InputError

MACHINE = "Machine and output"
DEBUG = "Show where an error came from (or set DDIM_DEBUG=1)."


@dataclass(frozen=True)
class Running:
    """The command that runs now.

    Args:
        context: click's: the command, its parameters, their values and where each came from.
        as_json: whether the command prints one JSON object and no progress.
        quiet: whether it prints neither progress nor a report.
    """

    context: Any
    as_json: bool = False
    quiet: bool = False


_running: ContextVar[Running | None] = ContextVar("running", default=None)


def running() -> Running | None:
    """The command that runs now; None outside of one, as in a test that calls a part of it."""
    return _running.get()


def typed() -> frozenset[str]:
    """The parameters of the running command that were typed, or set by the environment; none outside of a command."""
    now = running()
    if now is None:
        return frozenset()
    sources = {name: now.context.get_parameter_source(name) for name in now.context.params}
    return frozenset(name for name, source in sources.items() if source is not None and source.name != "DEFAULT")


Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and no progress.", rich_help_panel=MACHINE)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print neither progress nor a report.", rich_help_panel=MACHINE)
]


def remember_debug(ctx: typer.Context, value: bool) -> bool:
    """Tells the group, which catches errors, to let them through."""
    if value:
        ctx.meta["ddim.debug"] = True
    return value


Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help=DEBUG,
        callback=remember_debug,
        rich_help_panel=MACHINE,
    ),
]


def _flags(json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Declares the flags that every command takes."""


def _flag_parameters() -> list[Any]:
    """The flags as click's parameters, made anew for each command."""
    declared = typer.Typer(add_completion=False)
    declared.command()(_flags)
    return list(typer.main.get_command(declared).params)


class Command(TyperCommand):
    """A command with ``--json``, ``--quiet`` and ``--debug``, of which its function sees nothing.

    ``Terminal`` reads the first two from ``running()``; ``--debug`` is read by the group, which reports errors.
    """

    def __init__(self, *args: Any, params: list[Any] | None = None, **rest: Any) -> None:
        super().__init__(*args, params=[*(params or []), *_flag_parameters()], **rest)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the words of the command line.

        Raises:
            InputError: a value is of another type, or out of its range.
        """
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if refusal := _refusal(error, words):
                raise refusal from None
            raise

    def invoke(self, ctx: Any) -> Any:
        """Runs the command's function with the command's own parameters."""
        flags = {name: bool(ctx.params.pop(name, False)) for name in ("json", "quiet", "debug")}
        with _known(Running(ctx, flags["json"], flags["quiet"])):
            return super().invoke(ctx)


def _refusal(error: Exception, words: list[str]) -> InputError | None:
    """One sentence with the flag and the value, for a value that the command-line library refused.

    None for any other error: the library's own message names what is wrong.
    """
    parameter = getattr(error, "param", None)
    if type(error).__name__ != "BadParameter" or parameter is None:
        return None
    flags = {*parameter.opts, *parameter.secondary_opts}
    typed_values = [after for word, after in pairwise([*words, ""]) if word in flags]
    typed_values += [word.partition("=")[2] for word in words if word.partition("=")[0] in flags and "=" in word]
    short = tuple(flag for flag in flags if len(flag) == 2)
    typed_values += [word[2:] for word in words if word.startswith(short) and len(word) > 2] if short else []
    said = str(getattr(error, "message", ""))
    for part, wanted, kind in (("integer", "a whole number", int), ("number", "a number", float)):
        wrong = [value for value in typed_values if value and not _reads(value, kind)]
        if part in said and wrong:
            return InputError(f"{wrong[0]!r} is not {wanted}.", parameter=parameter.name)
    least, most = (re.search(f"{word} than or equal to ([-+.0-9e]*[0-9])", said) for word in ("greater", "less"))
    bound = least or most
    if bound is None:
        return None
    limit = Decimal(bound[1])  # exact: 2**63 and 2**63 - 1 are one float
    numbers = [(value, Decimal(value)) for value in typed_values if _reads(value, float)]
    outside = [v for v, number in numbers if number.is_nan() or (number < limit if least else number > limit)]
    if not outside:
        return None
    return InputError(
        f"{outside[0]} is out of range; use {bound[1]} or {'more' if least else 'less'}.", parameter=parameter.name
    )


def _reads(value: str, kind: type[int] | type[float]) -> bool:
    """Whether a text is a number of this kind."""
    try:
        kind(value)
    except ValueError:
        return False
    return True


@contextmanager
def _known(now: Running) -> Iterator[None]:
    token = _running.set(now)
    try:
        yield
    finally:
        _running.reset(token)
