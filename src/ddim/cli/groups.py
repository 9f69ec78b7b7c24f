"""Groups of options: each option is declared once, in a dataclass, and commands take the dataclass as one parameter."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from .command import typed


def option(default: Any, flags: str, help: str, panel: str | None = None, **rest: Any) -> Any:
    """Declares an option as a field of a group.

    Args:
        default: its value where it is left out; a group's instance in a command's signature may have another.
        flags: as they are typed, separated by spaces: ``"--steps -S"``.
        help: one or two sentences for ``--help``.
        panel: the heading it stands under there.
        rest: ``argument``, the name of the library's argument if it is not the field's, or None if the command uses the
            option itself; ``parse``, a function from the typed value to the argument; ``tag``, the text before its
            value in a file's name; ``about``, False for an option that metadata does not list; and arguments of
            ``typer.Option``.
    """
    ours = {key: rest.pop(key) for key in ("argument", "parse", "tag", "about") if key in rest}
    shown = {"show_default": False} if default is None else {}
    declared = {"rich_help_panel": panel, "help": help, **shown, **rest}
    return field(default=default, metadata={"flags": flags.split(), "typer": declared, **ours})


@dataclass(frozen=True)
class Options:
    """A group of options; a subclass declares them as fields, by ``option``.

    Attributes:
        typed: the fields that were typed, and not left at their default.
    """

    typed: frozenset[str] = field(default=frozenset(), kw_only=True)

    @property
    def arguments(self) -> dict[str, Any]:
        """The library's arguments that were typed, by their names there. What was left out has the library's default.

        Raises:
            InputError: a value that cannot be read.
        """
        found: dict[str, Any] = {}
        for one in fields(self):
            argument = one.metadata.get("argument", one.name)
            if one.name in self.typed and argument is not None:
                value = getattr(self, one.name)
                found[argument] = one.metadata.get("parse", _as_it_is)(value)
        return found

    @property
    def about(self) -> dict[str, Any]:
        """What the metadata of a result says of these options: field -> value as it was typed or by default."""
        listed = (one.name for one in fields(self) if one.metadata.get("about", "typer" in one.metadata))
        return {name: getattr(self, name) for name in listed}

    @property
    def tags(self) -> dict[str, str]:
        """What file names say of these options: tag -> value, of those that have a tag and differ from the default."""
        return {
            one.metadata["tag"]: _tag_text(getattr(self, one.name))
            for one in fields(self)
            if "tag" in one.metadata and getattr(self, one.name) != one.default
        }


def tags_of(*groups: Options) -> dict[str, str]:
    """The tags of all groups, in their order."""
    return {tag: text for group in groups for tag, text in group.tags.items()}


def _as_it_is(value: Any) -> Any:
    return value


def _tag_text(value: Any) -> str:
    if value is True:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value).replace(",", "-")


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """A command's function as Typer reads it: each parameter whose default is a group becomes the group's options.

    The group's instance in the signature gives the defaults that the command shows.
    """
    signature = inspect.signature(function)
    groups: dict[str, Options] = {}
    flat: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if isinstance(parameter.default, Options):
            groups[parameter.name] = parameter.default
            flat += _parameters(parameter.default)
        else:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(function)
    def called(**values: Any) -> None:
        asked = typed()
        made: dict[str, Options] = {}
        for name, group in groups.items():
            own = {one.name: values.pop(one.name) for one in fields(group) if "typer" in one.metadata}
            made[name] = replace(group, **own, typed=frozenset(own) & asked)
        function(**values, **made)

    called.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return called


def _parameters(group: Options) -> list[inspect.Parameter]:
    """The group's options as parameters that Typer understands."""
    hints = get_type_hints(type(group))
    found: list[inspect.Parameter] = []
    for one in fields(group):
        declared: Mapping[str, Any] = one.metadata.get("typer", {})
        if not declared:
            continue
        default = getattr(group, one.name)
        info = typer.Option(*one.metadata["flags"], **declared)
        annotation = Annotated[hints[one.name], info]
        kind = inspect.Parameter.KEYWORD_ONLY
        found.append(inspect.Parameter(one.name, kind, default=default, annotation=annotation))
    return found
