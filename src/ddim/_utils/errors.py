"""The package's exceptions, which carry data (the parameter at fault, a message, a hint), and tests of value types."""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from operator import index
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

if TYPE_CHECKING:
    from ..inversion.latent_code import LatentCode

_E = TypeVar("_E", bound="DDIMError")


class DDIMError(Exception):
    """A failure that the caller did not cause, such as a full disk or NaN from a network. The command exits with 1.

    Args:
        message: one sentence, without the parameter's name.
        parameter: the argument or config key at fault, as the library names it (``steps``, ``data.size``).
        hint: a second sentence that says what to do, if the message does not.
        offer: an argument that would do, as the message or the hint names it: ``"resize=True"``. The command writes
            its option there instead.

    Attributes:
        message, parameter, hint, offer: the arguments. ``str(error)`` joins the first three.
    """

    def __init__(
        self, message: str, *, parameter: str | None = None, hint: str | None = None, offer: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.parameter, self.hint, self.offer = message, parameter, hint, offer

    def sentence(self, spell: Callable[[str], str] = str) -> str:
        """Returns the full text of the error: parameter, message and hint.

        Args:
            spell: translates the parameter's name for the reader; the command turns ``steps`` into ``--steps``.
        """
        text = f"{self.message} {self.hint}" if self.hint else self.message
        if self.offer is not None:
            name = self.offer.partition("=")[0]
            text = text if spell(name) == name else text.replace(self.offer, spell(name))
        return text if self.parameter is None else f"{spell(self.parameter)}: {text}"

    def __str__(self) -> str:
        return self.sentence()

    def __reduce__(self) -> tuple[Any, ...]:  # copy and pickle would call __init__ with the message alone
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[_E], args: tuple[Any, ...], attributes: dict[str, Any]) -> _E:
    """Restores a copied or unpickled error without calling its ``__init__``."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class InputError(DDIMError, ValueError):
    """The caller gave a value that cannot be used. The message names the value and what is accepted instead.

    The command exits with 2.
    """


class UnknownName(InputError):
    """The caller gave a name that is not registered. The message suggests the most similar name and lists them all.

    Args:
        kind: what the name should denote, such as ``"method"``.
        name: the unknown name.
        known: the names that exist.
        parameter: as for ``DDIMError``; ``kind`` by default.
        hint: as for ``DDIMError``.

    Attributes:
        kind, name: the arguments.
        known: the known names, sorted.
        nearest: the known name most similar to ``name``, or None if none is similar.

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
        """Like ``DDIMError.sentence``, without the parameter: the message already says what the name should denote."""
        return f"{self.message} {self.hint}" if self.hint else self.message


class NotFinite(DDIMError):
    """Numbers are no longer finite: the network returned NaN or infinity, or a method diverged.

    Args:
        message: one sentence that says where it happened.
        step: the step in which it happened, counted from 1 in the order in which the steps are computed.
        hint: as for ``DDIMError``.

    Attributes:
        step: the argument.
    """

    def __init__(self, message: str, *, step: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.step = step


class NotWritten(DDIMError):
    """A file could not be written, for example because the disk is full."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped ``ddim.invert``; the work done so far is kept.

    Like KeyboardInterrupt it is not an ``Exception``, so ``except Exception`` does not catch it.

    Attributes:
        partial: the finished batches and what the method has tuned. To continue, save it and pass it to
            ``ddim.invert(..., resume=partial)`` with the same images and settings.
    """

    def __init__(self, sentence: str, partial: "LatentCode") -> None:
        super().__init__(sentence)
        self.partial = partial


class NetworkMemory(MemoryError):
    """There is too little memory for one call of a network; a smaller batch needs less.

    Args:
        rows: the number of images in that call.

    Attributes:
        rows: the argument.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that Python, torch or a device ran out of memory.

    On a CPU torch raises a plain RuntimeError for it, which only the message distinguishes from others.
    """
    kinds = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    return kinds or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


class DDIMWarning(UserWarning):
    """A warning from this package: the result may not be what the user expects, but the computation continues."""


def warn(message: str) -> None:
    """Warns with a ``DDIMWarning`` at the line outside of the package that called it, however deep this is."""
    package, level = __name__.partition(".")[0], 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, DDIMWarning, stacklevel=level)


def is_whole(value: object) -> bool:
    """Whether a value is one integer of Python, numpy or torch; bools do not count."""
    try:
        index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # float arrays and tensors have __index__ too, and raise
        return False
    return not _is_bool(value)


def is_number(value: Any) -> bool:
    """Whether a value is one finite number of Python, numpy or torch; strings and bools do not count."""
    if isinstance(value, (str, bytes)) or _is_bool(value):
        return False
    try:
        return isfinite(float(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor with several elements
        return False


def is_plain(value: object) -> bool:
    """Whether a value can be stored as an option in a file: a finite number, a string, a bool or None."""
    return value is None or isinstance(value, (str, bool)) or is_number(value)


def as_plain(value: Any) -> Any:
    """Converts a number of numpy or torch to a Python number; returns anything else unchanged."""
    if isinstance(value, (int, float)) or not is_number(value):  # numpy's float64 is a subclass of float
        return value
    return int(value) if is_whole(value) else float(value)


def _is_bool(value: object) -> bool:
    """Whether a value is a bool of Python, numpy or torch."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def is_range(value: Any) -> bool:
    """Whether a value is a tuple or list of two finite numbers."""
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(is_number(v) for v in value)


def is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    """Whether a value is a dict; its keys and values may be of any type."""
    return isinstance(value, dict)


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Whether a value is a Mapping; its keys and values may be of any type."""
    return isinstance(value, Mapping)


def is_texts(value: Any) -> bool:
    """Whether a value is a sequence of strings, such as a list; a single string does not count."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
