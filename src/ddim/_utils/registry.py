"""A registry of classes by name. A class is imported only when it is looked up, so listing names needs no torch."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import NoneType
from typing import Any, Generic, TypeVar, cast, get_args

from .errors import InputError, UnknownName, is_number, is_whole

T = TypeVar("T")
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
PACKAGE = __name__.split(".", maxsplit=1)[0]


class Registry(Mapping[str, type[T]], Generic[T]):
    """A read-only mapping from names to classes, which are imported on first use.

    Args:
        lines: name -> ``"module:Class"``; the module's path is relative to the package.
    """

    def __init__(self, lines: Mapping[str, str]) -> None:
        self.lines = dict(lines)
        self._added: dict[str, type[T]] = {}

    def add(self, kind: type[T]) -> type[T]:
        """Registers a class under its ``name`` for this process, replacing an earlier one. Usable as a decorator."""
        self._added[str(kind.name)] = kind  # type: ignore[attr-defined]
        return kind

    def __getitem__(self, name: str) -> type[T]:
        if name in self._added:
            return self._added[name]
        module, _, kind = self.lines[name].partition(":")
        return cast("type[T]", getattr(import_module(f"{PACKAGE}.{module}"), kind))

    def __contains__(self, name: object) -> bool:
        return name in self.lines or name in self._added

    def __iter__(self) -> Iterator[str]:
        return iter({**self.lines, **self._added})

    def __len__(self) -> int:
        return len({**self.lines, **self._added})


def build(kind: type[T], name: str, options: Mapping[str, Any] | None) -> T:
    """Creates a frozen dataclass from options; each option must be a field, and have the type of the field's default.

    A field of the type ``float | None`` also takes None, or the text ``none``.

    Args:
        kind: the dataclass.
        name: its registered name, for error messages.
        options: field -> value; None means no options.

    Raises:
        InputError: an option is unknown, or its value has the wrong type or is out of range.
    """
    known = _fields(kind)
    values = {}
    if not isinstance(cast(Any, options), (Mapping, NoneType)):
        raise InputError(
            f"a {type(options).__name__} is not what they are; give a mapping such as {{'eta': 0.5}}.",
            parameter="options",
        )
    for key, value in (options or {}).items():
        if key not in known:
            if not known:
                raise InputError(f"{name!r} takes no options, but {key!r} was given.", parameter=key)
            raise UnknownName(f"option of {name!r}", key, known, parameter="options")
        nullable, wanted = _wanted(known[key])
        none = nullable and (value is None or str(value).lower() == "none")
        values[key] = None if none else _as_type(name, key, value, wanted)
    return kind(**values)


def check_options(instance: Any) -> None:
    """Raises InputError if an option of a registered dataclass has the wrong type, or is not a finite number.

    Args:
        instance: an instance that was made directly, or by ``build``.
    """
    for key, option in _fields(type(instance)).items():
        value, (nullable, wanted) = getattr(instance, key), _wanted(option)
        declared = wanted in (option.type, *get_args(option.type))
        if not declared or wanted not in TYPE_NAMES or (value is None and nullable):
            continue
        right = is_number(value) if wanted is float else is_whole(value) if wanted is int else isinstance(value, wanted)
        if not right:
            raise _not_of_type(instance.name, key, value, wanted)


def _fields(kind: type) -> dict[str, Any]:
    """Returns the fields of a dataclass that are options, by name."""
    from dataclasses import fields  # imported here: it imports inspect, a third of the time that `import ddim` takes

    return {f.name: f for f in fields(cast(Any, kind)) if f.init}


def _wanted(option: Any) -> tuple[bool, type]:
    """Returns whether an option may be None, and its type otherwise."""
    kinds, default = get_args(option.type), type(option.default)
    return NoneType in kinds, next(iter(kinds), object) if default is NoneType else default


def _not_of_type(name: str, key: str, value: Any, wanted: type) -> InputError:
    return InputError(f"{value!r} of {name!r} is not {TYPE_NAMES[wanted]}.", parameter=key)


def _as_type(name: str, key: str, value: Any, wanted: type) -> Any:
    """Converts a value to the option's type if the conversion loses nothing (``"3"`` or 3.0 -> 3, but not 3.5)."""
    if isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    try:
        if wanted is bool:
            return {"true": True, "false": False}[str(value).lower()]
        converted = wanted(value)
        if wanted is int and float(value) != converted:
            raise ValueError
        return converted
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _not_of_type(name, key, value, wanted) from None
