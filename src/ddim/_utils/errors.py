"""What goes wrong, as data: the parameter that was wrong, a sentence that names its value, and what would do."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from operator import index
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

if TYPE_CHECKING:
    from ..inversion.latent_code import LatentCode

_E = TypeVar("_E", bound="DDIMError")


class DDIMError(Exception):
    """A failure that is not the caller's mistake (a NaN from a network, a full disk). The command exits with 1.

    Args:
        message: one sentence, without the parameter's name.
        parameter: the argument or config key that it is about, as the library names it (``steps``, ``data.size``).
        hint: a second sentence that says what would do, where the first does not.

    Attributes:
        message, parameter, hint: as given. ``str(error)`` puts them together.
    """

    def __init__(self, message: str, *, parameter: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.parameter, self.hint = message, parameter, hint

    def sentence(self, spell: Callable[[str], str] = str) -> str:
        """What to tell a person.

        Args:
            spell: the parameter's name as the person knows it; the command makes ``--steps`` of ``steps``.
        """
        whole = self.message if self.parameter is None else f"{spell(self.parameter)}: {self.message}"
        return f"{whole} {self.hint}" if self.hint else whole

    def __str__(self) -> str:
        return self.sentence()

    def __reduce__(self) -> tuple[Any, ...]:  # an exception is otherwise made anew from its message alone
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[_E], args: tuple[Any, ...], attributes: dict[str, Any]) -> _E:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class InputError(DDIMError, ValueError):
    """A value that cannot be used. The sentence names it and says what would do. The command exits with 2."""


class UnknownName(InputError):
    """A name that is in no registry. The sentence offers the nearest known one, then all of them.

    Args:
        kind: what the name is of, such as ``"method"``.
        name: the name that was given.
        known: those that there are.
        parameter: as for ``DDIMError``; ``kind`` by default.
        hint: as for ``DDIMError``.

    Attributes:
        kind, name: as given.
        known: sorted.
        nearest: the known name that is most like the one given, or None.

    Example: ``UnknownName("method", "bdai", ["bdia", "ddim"])``.
    """

    def __init__(
        self, kind: str, name: object, known: Iterable[str], *, parameter: str | None = None, hint: str | None = None
    ) -> None:
        names = sorted(known)
        near = get_close_matches(str(name).lower(), [n.lower() for n in names], n=1, cutoff=0.5)
        nearest = next((n for n in names if near and n.lower() == near[0]), None)
        offer = f" Did you mean {nearest!r}?" if nearest else ""
        super().__init__(
            f"Unknown {kind} {name!r}.{offer} Known: {', '.join(names)}.", parameter=parameter or kind, hint=hint
        )
        self.kind, self.name, self.known, self.nearest = kind, name, tuple(names), nearest

    def sentence(self, spell: Callable[[str], str] = str) -> str:
        """As ``DDIMError.sentence``; the message says already what the name is of."""
        return f"{self.message} {self.hint}" if self.hint else self.message


class NotFinite(DDIMError):
    """Numbers stopped being finite: the network returned NaN or infinity, or a method diverged.

    Args:
        message: one sentence that says where.
        step: the step it happened in, counted from 1 in the direction of the work.
        hint: as for ``DDIMError``.

    Attributes:
        step: as given.
    """

    def __init__(self, message: str, *, step: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.step = step


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in ``ddim.invert``, with the batches that are done and what a method had tuned. It is no ``Exception``, so
    that nothing takes it for a failure.

    Attributes:
        partial: save it, and hand it to ``ddim.invert(..., resume=partial)`` with the same images and settings.
    """

    def __init__(self, sentence: str, partial: "LatentCode") -> None:
        super().__init__(sentence)
        self.partial = partial


class NetworkMemory(MemoryError):
    """The memory does not hold one call of a network; a smaller batch needs less.

    Attributes:
        rows: images in that call.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows


def out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or a device ran out of memory; on a CPU torch says so by its words alone."""
    kinds = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    return kinds or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


class DDIMWarning(UserWarning):
    """Something the user should know although the work goes on."""


def is_whole(value: object) -> bool:
    """Whether a value can count things: one integer of Python, numpy or torch, and no bool."""
    try:
        index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # every array and tensor has the method, also of fractions
        return False
    return not _is_truth(value)


def is_number(value: Any) -> bool:
    """Whether a value is one finite number, of Python, numpy or torch; no text and no bool."""
    if isinstance(value, (str, bytes)) or _is_truth(value):
        return False
    try:
        return isfinite(float(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several
        return False


def is_plain(value: object) -> bool:
    """Whether a value can be an option in a file: a number, a text, yes or no, or nothing."""
    return value is None or isinstance(value, (str, bool)) or is_number(value)


def as_plain(value: Any) -> Any:
    """A number of numpy or torch as Python's own; anything else as it is."""
    if isinstance(value, (int, float)) or not is_number(value):  # numpy's float64 is a float
        return value
    return int(value) if is_whole(value) else float(value)


def _is_truth(value: object) -> bool:
    """Whether a value is True or False, of Python, numpy or torch."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def is_range(value: Any) -> bool:
    """Whether a value is a pair of numbers."""
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(is_number(v) for v in value)


def is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    """Whether a value is a dict, of whatever."""
    return isinstance(value, dict)


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Whether a value is a mapping, of whatever."""
    return isinstance(value, Mapping)


def is_texts(value: Any) -> bool:
    """Whether a value is a sequence of texts, such as a list; no single text."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
