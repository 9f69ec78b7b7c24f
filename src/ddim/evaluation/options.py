"""Options of a benchmark: each is declared once, as a field of a frozen dataclass whose type carries an ``Option``.

The command and Python read the same declaration.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from .._utils.choices import DTYPES
from .._utils.errors import InputError, is_number, is_whole

if TYPE_CHECKING:
    from ..models.base import Model

    ModelName = str | Model
else:
    ModelName = str

Spacing = str | Sequence[float]
"""A key of ``ddim.SPACINGS``, or the times t themselves."""

MANY = 10_000_000
"""The largest number of images; each has a row, and all rows of a setting are held in memory."""


@dataclass(frozen=True)
class Option:
    """How an option is shown and checked.

    Attributes:
        help: one or two sentences.
        short: a second flag, such as ``-S``.
        metavar: what the help shows in place of the type.
        least, most: the range of a number.
        machine: whether it is about the machine, not about what is measured.
        positional: whether the command takes it as an argument without a flag.
        separated: whether the command splits each text at commas and spaces.
    """

    help: str
    short: str = ""
    metavar: str | None = None
    least: float | None = None
    most: float | None = None
    machine: bool = False
    positional: bool = False
    separated: bool = False


def names(known: Iterable[str]) -> str:
    """Names as a help text lists them."""
    return ", ".join(known)


ModelOption = Annotated[ModelName, Option("A bundled model, a folder in the diffusers format, or a hub id.", "-m")]
SeedOption = Annotated[int, Option("The k-th image has the seed seed + k.")]
BatchOption = Annotated[int, Option("Images in each network call.", machine=True)]


@dataclass(frozen=True)
class Declared:
    """A declared option: its name, its type without None, its default, and how it is shown."""

    name: str
    type: Any
    default: Any
    option: Option

    @property
    def element(self) -> Any:
        """The type of one value: T of ``Sequence[T]``, else the type itself."""
        return get_args(self.type)[0] if self.repeated else self.type

    @property
    def repeated(self) -> bool:
        """Whether it is a sequence of values."""
        return get_origin(self.type) is Sequence

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is MISSING


def declared(kind: "type[Options]") -> list[Declared]:
    """The options that a dataclass declares, in order."""
    hints = get_type_hints(kind, include_extras=True)
    found: list[Declared] = []
    for one in fields(kind):
        plain, option = get_args(hints[one.name])
        assert isinstance(option, Option), f"{kind.__name__}.{one.name} is not declared as an option"
        found.append(Declared(one.name, _without_none(plain), one.default, option))
    return found


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) not in (Union, UnionType) or len(kinds) == len(get_args(hint)):
        return hint
    return kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]  # noqa: UP007  (made at run time)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every benchmark. A subclass adds fields whose types are ``Annotated[..., Option(...)]``.

    A path may be given as a text, and a sequence as any iterable or as a single value.

    Raises:
        InputError: a value is of another type, or a number is out of its range.
    """

    model: ModelOption

    def __post_init__(self) -> None:
        for one in declared(type(self)):
            value = getattr(self, one.name)
            if value is None:
                continue
            values = [_plain(one.name, v, one.element) for v in (_listed(value) if one.repeated else [value])]
            for each in values:
                _check_type(one, each)
                _check_range(one, each)
            object.__setattr__(self, one.name, tuple(values) if one.repeated else values[0])


def _listed(value: Any) -> Iterable[Any]:
    return [value] if isinstance(value, (str, int, float, Path)) else value


def _plain(name: str, value: Any, kind: Any) -> Any:
    if name == "model" and isinstance(value, Path):
        return str(value)
    return Path(value) if kind is Path else value


def _check_type(one: Declared, value: Any) -> None:
    kinds: dict[Any, tuple[str, bool]] = {
        int: ("a whole number", is_whole(value)),
        float: ("a number", is_number(value)),
        bool: ("true or false", isinstance(value, bool)),
        str: ("a text", isinstance(value, str)),
    }
    wanted, fits = kinds.get(one.element, ("", True))
    if not fits and one.name != "model":  # which may also be a loaded one
        raise InputError(f"{value!r} is not {wanted}.", parameter=one.name)


def _check_range(one: Declared, value: Any) -> None:
    least, most = one.option.least, one.option.most
    if least is not None and value < least:
        raise InputError(f"{value} is too small; use {least:g} or more.", parameter=one.name)
    if most is not None and value > most:
        raise InputError(f"{value} is too large; use {most:g} or less.", parameter=one.name)


@dataclass(frozen=True, kw_only=True)
class MethodOptions(Options):
    """Which inversions are measured."""

    method: Annotated[
        Sequence[str] | None,
        Option("An inversion, or one with its options such as 'ddim iterations=5'; repeatable. By default all."),
    ] = None
    option: Annotated[
        Mapping[str, Any] | None, Option("An option of the one --method, such as start=prompt; repeatable.", "-o")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """On which images a model is measured, and in which batches and precision."""

    recipe: Annotated[
        Path | None,
        Option(
            "The recipe that trained the model: measure on its held-out or test images, not on the bundled ones.",
            metavar="RECIPE.toml",
        ),
    ] = None
    data: Annotated[Path | None, Option("A folder of images to measure on, for models without text.")] = None
    images: Annotated[int | None, Option("How many of the images to take, spread evenly over them.", least=1)] = None
    batch: Annotated[int, Option("Images in each network call.", machine=True, least=1)] = 16
    dtype: Annotated[str, Option(f"{names(DTYPES)}: the precision of the network.", machine=True)] = "float32"


@dataclass(frozen=True, kw_only=True)
class PairOptions(Options):
    """How many edits of each image there are."""

    words: Annotated[int, Option("Edits of each source to other words.", least=0)] = 2
    styles: Annotated[int, Option("Edits of each source to other styles.", least=0)] = 2


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(Options):
    """In which features images are compared."""

    features: Annotated[
        str | None,
        Option("A bundled classifier, or the folder of one, whose features are used; by default the one that fits."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(FeatureOptions):
    """With which images the generated ones are compared."""

    data: Annotated[
        Path | None,
        Option(
            "What to compare with: a recipe, or a folder, parquet or idx file of images. By default the "
            "test images whose statistics are bundled with the features."
        ),
    ] = None
    split: Annotated[str, Option("The split of --data.")] = "test"
