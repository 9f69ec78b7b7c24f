"""The registry of inversions: adding one is a file and a line here. Every reversible solver is one by itself."""

from collections.abc import Callable, Mapping
from typing import Any

from .._utils.errors import InputError, UnknownName
from ..solvers import SOLVERS, ReversibleSolver, build, make_solver
from .base import GuidedInversion, Inversion
from .ddim import DDIMInversion
from .direct import DirectInversion
from .edit_friendly import EditFriendly
from .exact import ExactInversion
from .heun import HeunInversion
from .negative_prompt import NegativePrompt
from .null_text import NullText

APPROXIMATE: dict[str, Callable[..., Inversion]] = {m.name: m for m in (DDIMInversion, HeunInversion)}
GUIDED: dict[str, Callable[..., GuidedInversion]] = {
    m.name: m for m in (NullText, NegativePrompt, DirectInversion, EditFriendly)
}
REVERSIBLE: tuple[str, ...] = tuple(name for name, kind in SOLVERS.items() if issubclass(kind, ReversibleSolver))


def inversion_names() -> list[str]:
    """Every method that ``make_inversion`` knows."""
    return [*APPROXIMATE, *GUIDED, *REVERSIBLE]


def make_inversion(name: str, options: Mapping[str, Any] | None = None) -> Inversion | GuidedInversion:
    """An inversion by name.

    Args:
        name: one of ``inversion_names()``.
        options: its fields, such as ``{"iterations": 5}``, or the reversible solver's, ``{"gamma": 0.96}``.

    Raises:
        InputError: an unknown name or option, or a value out of range.
    """
    if not isinstance(name, str):
        raise InputError(f"a {type(name).__name__} is not a method's name.", parameter="method")
    if name in APPROXIMATE:
        return build(APPROXIMATE[name], name, options)
    if name in GUIDED:
        return build(GUIDED[name], name, options)
    if name in REVERSIBLE:
        solver = make_solver(name, options)
        assert isinstance(solver, ReversibleSolver)
        return ExactInversion(solver)
    if name in SOLVERS:
        raise InputError(
            f"{name!r} cannot be inverted; use one of: {', '.join(inversion_names())}.", parameter="method"
        )
    raise UnknownName("method", name, inversion_names())


__all__ = ["APPROXIMATE", "GUIDED", "REVERSIBLE", "GuidedInversion", "Inversion", "inversion_names", "make_inversion"]
