"""The registry of solvers: adding one is a file and a line here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._utils.errors import InputError, UnknownName
from .._utils.registry import Registry, build

if TYPE_CHECKING:
    from ..core.contracts import Solver
    from .lattice import ReversibleSolver

REVERSIBLE: "Registry[ReversibleSolver]" = Registry(
    {
        "edict": "solvers.edict:EDICT",
        "bdia": "solvers.bdia:BDIA",
        "belm": "solvers.belm:BELM",
    }
)
"""Solvers that can be undone to the bit; each is an inversion too."""

SOLVERS: "Registry[Solver]" = Registry(
    {
        "ddim": "solvers.ddim:DDIM",
        "ddpm": "solvers.ddpm:DDPM",
        "heun": "solvers.heun:Heun",
        "adams-bashforth": "solvers.multistep:AdamsBashforth",
        "dpm++2m": "solvers.multistep:DPMSolverPP",
        **REVERSIBLE.lines,
    }
)
"""Every solver by its name."""


def make_solver(solver: "str | Solver", options: Mapping[str, Any] | None = None) -> "Solver":
    """A solver by name; one that is a solver already stays as it is.

    Args:
        solver: a key of ``SOLVERS``, or a ``Solver``.
        options: its fields, such as ``{"eta": 0.5}`` or ``{"gamma": 0.96}``; they go with a name.

    Raises:
        InputError: an unknown name or option, a value out of range, options beside a solver that has its own.
    """
    if not isinstance(solver, str):
        return _as_it_is(solver, options)
    if solver not in SOLVERS:
        raise UnknownName("solver", solver, SOLVERS)
    return build(SOLVERS[solver], solver, options)


def _as_it_is(solver: object, options: Mapping[str, Any] | None) -> "Solver":
    from ..core.contracts import Solver

    if not isinstance(solver, Solver):
        raise InputError(
            f"a {type(solver).__name__} is neither a solver nor the name of one; use one of: {', '.join(SOLVERS)}.",
            parameter="solver",
        )
    if options:
        raise InputError("they go with a solver's name; a solver object has its own.", parameter="options")
    return solver
