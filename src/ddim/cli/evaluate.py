"""``ddim evaluate``: a command for each benchmark, made from the options that the benchmark declares."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._utils.errors import InputError
from ..evaluation import BENCHMARKS, evaluate
from . import options as o
from .command import Command
from .failure import Commands
from .output import Terminal, escaped
from .repeat import repeat

if TYPE_CHECKING:
    from ..evaluation.options import Declared


class LazyCommands(Mapping[str, Any]):
    """The commands by name. A command is made when it is looked up, because that imports the benchmark's module."""

    def __getitem__(self, name: str) -> Any:
        if name not in BENCHMARKS:
            raise KeyError(name)
        alone = typer.Typer(add_completion=False)
        alone.command(name, cls=Command)(command_of(name))
        return typer.main.get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return iter(BENCHMARKS)

    def __len__(self) -> int:
        return len(BENCHMARKS)


class BenchmarkCommands(Commands):
    """The group whose commands are the registry of benchmarks."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.commands: Any = LazyCommands()


app = typer.Typer(
    name="evaluate",
    cls=BenchmarkCommands,
    no_args_is_help=True,
    help="Measure a model. Every table says which command made it.",
)


def command_of(name: str) -> Callable[..., None]:
    """The function of a benchmark's command. Its parameters are the benchmark's options."""
    from ..evaluation.options import declared

    benchmark = BENCHMARKS[name]
    known = {one.name: one for one in declared(benchmark.options_type)}

    def run(**values: Any) -> None:
        out, device = values.pop("out"), values.pop("device")
        options = {key: _value(known[key], value) for key, value in values.items()}
        with Terminal() as terminal:
            command = repeat(out=None, device=None)
            found = evaluate(
                name, out=out, device=device, reporter=_TerminalReporter(terminal), command=command, **options
            )
            if found is None:
                return
            shown = [f for f in found.files if f.suffix in (".md", ".png")]
            terminal.result(
                {**found.about, "rows": found.rows, "files": [str(f) for f in found.files]},
                *([escaped(found.headline)] if found.headline else []),
                *(f"[bold]{escaped(f)}[/bold]" for f in shown),
                f"[dim]{escaped(found.extent)} · {terminal.seconds:.0f} s[/dim]",
            )

    parameters = [_parameter(one) for one in known.values()]
    folder = typer.Option("--out", help="The folder for rows, tables and sheets; a run that was stopped continues.")
    parameters.append(_keyword("out", Annotated[Path, folder], Path("evaluation") / name))
    parameters.append(_keyword("device", o.Device, None))
    # typer and click read a command's parameters from the signature and from the annotations
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    paragraphs = inspect.cleandoc(benchmark.__doc__ or "").split("\n\n")
    run.__name__, run.__doc__ = name, "\n\n".join(" ".join(p.split()) for p in paragraphs)  # the help keeps line breaks
    return run


class _TerminalReporter:
    """Shows the progress of a benchmark on the terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.status, self.bar, self.warn = terminal.status, terminal.bar, terminal.warn

    def say(self, line: str) -> None:
        """A line on stderr, if there is no bar there."""
        if not (self.terminal.live or self.terminal.as_json or self.terminal.quiet):
            typer.echo(line, err=True)


def _keyword(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


def _parameter(one: "Declared") -> inspect.Parameter:
    """An option as a parameter of the command."""
    option = one.option
    settings: dict[str, Any] = {"help": option.help, "metavar": option.metavar}
    if not one.required and one.default is None:
        settings["show_default"] = False
    if one.element in (int, float):
        settings |= {"min": option.least, "max": option.most}
    if option.machine:
        settings["rich_help_panel"] = o.MACHINE
    if _is_pairs(one):
        settings["metavar"] = "KEY=VALUE"
    default = inspect.Parameter.empty if one.required else _default(one)
    if option.positional:
        return _keyword(one.name, Annotated[_kind(one), typer.Argument(**settings)], default)
    flags = [f"--{one.name.replace('_', '-')}", *([option.short] if option.short else [])]
    return _keyword(one.name, Annotated[_kind(one), typer.Option(*flags, **settings)], default)


def _kind(one: "Declared") -> Any:
    """The type of an option on the command line."""
    if _is_spacing(one):
        kind: Any = str
    elif _is_pairs(one) or one.option.separated:
        kind = list[str]
    else:
        kind = list[one.element] if one.repeated else one.type
    return kind | None if one.default is None else kind


def _default(one: "Declared") -> Any:
    return list(one.default) if one.repeated and one.default is not None else one.default


def _is_spacing(one: "Declared") -> bool:
    """Whether an option is a spacing, which may be typed as a list of numbers."""
    from ..evaluation.options import Spacing

    return one.type == Spacing


def _is_pairs(one: "Declared") -> bool:
    """Whether an option is a mapping, which is typed as KEY=VALUE."""
    return getattr(one.type, "__origin__", None) is Mapping


def _value(one: "Declared", value: Any) -> Any:
    """A typed value as the benchmark takes it.

    Raises:
        InputError: a text that cannot be read.
    """
    if value is None:
        return None
    if _is_spacing(one):
        return o.spacing_from(value)
    if _is_pairs(one):
        return o.options_from(value) or None
    if one.option.separated:
        return _separated(one, value)
    return value or None if one.repeated and one.default is None else value


def _separated(one: "Declared", texts: Sequence[str]) -> list[Any] | None:
    """``["0,1", "8"]`` as [0, 1, 8]; None if the option was left out.

    Raises:
        InputError: a text is empty, or a part of it is not a number where numbers are wanted.
    """
    parts = [part for text in texts for part in re.split(r"[,\s]+", text) if part]
    if texts and not parts:
        raise InputError(f"{texts[0]!r} names nothing; leave it out for all.", parameter=one.name)
    if one.element is int and (wrong := next((part for part in parts if not part.isdecimal()), None)):
        flag = f"--{one.name.replace('_', '-')}"
        raise InputError(f"{wrong} is not a number; write for example {flag} 0,1.", parameter=one.name)
    return [one.element(part) for part in parts] or None
