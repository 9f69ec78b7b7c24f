"""The registry of solvers: adding one is a file and a line here."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

from .._utils.errors import InputError, UnknownName
from .base import Noise, Solver, State
from .bdia import BDIA
from .belm import BELM
from .ddim import DDIM
from .ddpm import DDPM
from .edict import EDICT
from .heun import Heun
from .lattice import LatticeState, Lift, ReversibleSolver
from .multistep import AdamsBashforth, DPMSolverPP

SOLVERS: dict[str, type[Solver]] = {
    s.name: s for s in (DDIM, DDPM, Heun, AdamsBashforth, DPMSolverPP, EDICT, BDIA, BELM)
}


def make_solver(name: str, options: Mapping[str, Any] | None = None) -> Solver:
    """A solver by name.

    Args:
        name: a key of ``SOLVERS``.
        options: its fields, such as ``{"eta": 0.5}`` or ``{"gamma": 0.96}``.

    Raises:
        InputError: an unknown name or option, or a value out of range.
    """
    if name not in SOLVERS:
        raise UnknownName("solver", name, SOLVERS)
    return build(SOLVERS[name], name, options)


def build(kind: Callable[..., Any], name: str, options: Mapping[str, Any] | None) -> Any:
    """An instance of a frozen dataclass from options, each checked against its fields and their defaults' types."""
    known = {f.name: f for f in fields(cast(Any, kind)) if f.init}
    values = {}
    for key, value in (options or {}).items():
        if key not in known:
            if not known:
                raise InputError(f"{name!r} takes no options, but {key!r} was given.", parameter=key)
            raise UnknownName(f"option of {name!r}", key, known, parameter="options")
        default = known[key].default
        values[key] = _as_type(name, key, value, type(default))
    return kind(**values)


def _as_type(name: str, key: str, value: Any, wanted: type) -> Any:
    """The value as the option's type, when nothing is lost by it."""
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
        raise InputError(f"{value!r} of {name!r} is not a {wanted.__name__}.", parameter=key) from None


__all__ = [
    "SOLVERS",
    "LatticeState",
    "Lift",
    "Noise",
    "ReversibleSolver",
    "Solver",
    "State",
    "build",
    "make_solver",
]
