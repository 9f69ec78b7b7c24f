"""What goes wrong, said in one sentence: the value that was wrong and what would do."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .code import LatentCode


class DDIMError(Exception):
    """A failure that is not the caller's mistake (a NaN from a network, a full disk). Exit code 1."""


class InputError(DDIMError, ValueError):
    """A value that cannot be used; the sentence names it and says what would do. Exit code 2."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a method tuned, with what it had tuned. Exit code 130, as any Ctrl-C; no ``Exception``, so that
    nothing takes it for a failure.

    Attributes:
        partial: save it, and hand it to ``ddim.invert(..., resume=partial)`` with the same images and settings.
    """

    def __init__(self, sentence: str, partial: "LatentCode") -> None:
        super().__init__(sentence)
        self.partial = partial


class DDIMWarning(UserWarning):
    """Something the user should know although the work goes on."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The sentence for an unknown name: it offers the nearest known one, then all of them.

    Example: ``unknown("method", "bdai", ["bdia", "ddim"])``.
    """
    names = sorted(known)
    near = get_close_matches(str(name).lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    nearest = next((n for n in names if near and n.lower() == near[0]), None)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


def is_whole(value: object) -> bool:
    """Whether a value can count things: an integer of Python, numpy or torch, and no bool."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is one finite number, of Python, numpy or torch; no text and no bool."""
    if isinstance(value, (str, bytes, bool)):
        return False
    try:
        return isfinite(float(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several
        return False


def is_range(value: Any) -> bool:
    """Whether a value is a pair of numbers."""
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(is_number(v) for v in value)


def is_texts(value: Any) -> bool:
    """Whether a value is a sequence of texts, such as a list; no single text."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
