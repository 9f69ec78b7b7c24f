"""Reads the TOML file of a training run into a ``TrainConfig``, and compares it with the config of a resumed run."""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from .._utils.error_text import reason_of
from .._utils.errors import InputError, UnknownName
from .config import (
    AutoencoderConfig,
    ClassifierConfig,
    DataConfig,
    FlowConfig,
    LossConfig,
    OptimConfig,
    OutputConfig,
    PixelConfig,
    ScheduleConfig,
    TextConfig,
    TrainConfig,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

Section = TypeVar("Section")


def load_config(path: str | Path) -> TrainConfig:
    """Reads a TOML file: the key ``task``, and a section for each other field of ``TrainConfig``.

    Raises:
        InputError: there is no such file, it is not TOML, or it has an unknown key (the most similar known one is
            suggested) or a wrong value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the config {path}: {reason_of(error)}") from None
    try:
        return config_from_dict(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {reason_of(error)}") from None


def config_from_dict(table: Mapping[str, Any]) -> TrainConfig:
    """Makes a ``TrainConfig`` from nested dicts, with the same checks and errors as ``load_config``."""
    sections = {f.name: f.type for f in dataclasses.fields(TrainConfig)}
    for name, value in table.items():
        if name not in sections:
            raise UnknownName("section", name, sections, parameter=name)
        if name != "task" and not isinstance(value, Mapping):
            raise InputError(f"it must be a section of the config, not {value!r}.", parameter=name)
    hints = typing.get_type_hints(TrainConfig)
    return TrainConfig(
        task=_typed("task", hints["task"], table.get("task", "pixel")),
        data=_section("data", DataConfig, table.get("data", {})),
        train=_section("train", OptimConfig, table.get("train", {})),
        output=_section("output", OutputConfig, table.get("output", {})),
        schedule=_section("schedule", ScheduleConfig, table.get("schedule", {})),
        loss=_section("loss", LossConfig, table.get("loss", {})),
        pixel=_section("pixel", PixelConfig, table.get("pixel", {})),
        autoencoder=_section("autoencoder", AutoencoderConfig, table.get("autoencoder", {})),
        text=_section("text", TextConfig, table.get("text", {})),
        flow=_section("flow", FlowConfig, table.get("flow", {})),
        classifier=_section("classifier", ClassifierConfig, table.get("classifier", {})),
        model={k: _frozen(v) for k, v in table.get("model", {}).items()},
    )


def _section(name: str, kind: type[Section], table: Mapping[str, Any]) -> Section:
    """Makes one section's dataclass from a table. Raises InputError for unknown, missing or wrong values."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            raise UnknownName(f"key in [{name}]", key, hints, parameter=f"{name}.{key}")
        values[key] = _typed(f"{name}.{key}", hints[key], value)
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        optional = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        if not optional and f.name not in values:
            raise InputError("it is missing in the config.", parameter=f"{name}.{f.name}")
    return kind(**values)


def _typed(name: str, hint: Any, value: Any) -> Any:
    """Checks a value against a type hint, and converts int to float and list to tuple.

    Raises:
        InputError: the value has another type; ``name`` is its parameter.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        if isinstance(value, str) and isinstance(args[0], str):
            raise UnknownName(name, value, args)
        raise InputError(f"it must be one of {', '.join(map(repr, args))}, not {value!r}.", parameter=name)
    if origin in (typing.Union, types.UnionType):
        # The only unions in the config are those of a plain type and a list, so the value's own type decides.
        chosen = next((a for a in args if isinstance(value, list) == (typing.get_origin(a) is tuple)), args[0])
        return _typed(name, chosen, value)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise InputError(f"it must be a table, not {value!r}.", parameter=name)
        return {key: _typed(f"{name}.{key}", args[1], item) for key, item in value.items()}
    if hint is Any:
        return _frozen(value)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"it must be a table, not {value!r}.", parameter=name)
        return _section(name, hint, value)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list) or (args[-1] is not ... and len(value) != len(args)):
            kinds = {str: "texts", float: "numbers", int: "numbers"}
            kind = "tables" if dataclasses.is_dataclass(args[0]) else kinds.get(args[0], "lists")
            wanted = kind if args[-1] is ... else f"{len(args)} {kind}"
            raise InputError(f"it must be a list of {wanted}, not {value!r}.", parameter=name)
        return tuple(_typed(name, args[0], v) for v in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise InputError(f"it must be of type {hint.__name__}, not {value!r}.", parameter=name)
    return value


def _frozen(value: Any) -> Any:
    """Converts lists to tuples, also inside each other."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


# Keys that may change when a run is resumed, because they do not affect the weights. (A fingerprint of the images
# ensures that data.path still leads to the same data.)
FREE_KEYS = frozenset(
    {"data.path", "data.memory_gib", "data.workers", "text.autoencoder", "flow.base", "flow.shift", "pixel.classes"}
    | {"text.guidance", "flow.guidance"}
    | {f"output.{f.name}" for f in dataclasses.fields(OutputConfig)}
)


# If the config of an older run lacks a key, it is assumed to have today's value. For the keys here it is known what
# those runs did instead.
_BEFORE = {"pixel.condition": "none", "train.processes": 1}


def _same_source(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two entries of ``data.more`` are the same. The path may differ, and an older run may lack newer keys."""
    return all(key == "path" or old.get(key, value) == value for key, value in new.items())


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], step: int) -> list[str]:
    """Returns the keys (``section.key``) that affect the weights and differ between two ``TrainConfig.as_dict()``.

    With a constant learning rate, ``train.steps`` and ``train.decay`` may change as long as the rate falls in neither
    config, since no step so far depends on them.

    Args:
        old: the config that the run began with.
        new: the config of the resumed run.
        step: the number of steps that the run has made.
    """
    found = []
    free = FREE_KEYS | ({"train.steps", "train.decay"} if all(step <= _fall(c["train"]) for c in (old, new)) else set())
    for section in sorted({*old, *new}):
        before, after = old.get(section, {}), new.get(section, {})
        # The key ``task`` is no section. Older runs lack it, and were all of task "pixel".
        if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
            if (before or "pixel") != (after or "pixel"):
                found.append(section)
            continue
        for key in sorted({*before, *after}):
            name = f"{section}.{key}"
            old_value, value = before.get(key, _BEFORE.get(name, after.get(key))), after.get(key)
            if name == "data.more" and value and len(old_value) == len(value):
                if all(map(_same_source, old_value, value)):
                    continue
            elif name in free or old_value == value:
                continue
            found.append(name)
    return found


def _fall(train: Mapping[str, Any]) -> int:
    """Returns the number of steps before the learning rate begins to fall; 0 with a cosine, which always does."""
    if train.get("lr_schedule", "constant") != "constant":
        return 0
    return train["steps"] - train.get("decay", 0)
