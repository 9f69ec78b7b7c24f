"""The registry of solvers. To add a solver, write a module and add one line here."""

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
        "rex": "solvers.rex:Rex",
        "reversible-heun": "solvers.reversible_heun:ReversibleHeun",
    }
)
"""The solvers whose steps can be undone to the bit; each of them is also an inversion."""

SOLVERS: "Registry[Solver]" = Registry(
    {
        "ddim": "solvers.ddim:DDIM",
        "ddpm": "solvers.ddpm:DDPM",
        "lcm": "solvers.consistency:LCM",
        "tcd": "solvers.consistency:TCD",
        "heun": "solvers.heun:Heun",
        "midpoint": "solvers.midpoint:Midpoint",
        "fireflow": "solvers.fireflow:FireFlow",
        "adams-bashforth": "solvers.multistep:AdamsBashforth",
        "dpm++2m": "solvers.multistep:DPMSolverPP",
        **REVERSIBLE.lines,
    }
)
"""All solvers by name."""


def make_solver(solver: "str | Solver", options: Mapping[str, Any] | None = None) -> "Solver":
    """Makes a solver by name. A ``Solver`` is returned unchanged.

    Args:
        solver: a key of ``SOLVERS``, or a ``Solver``.
        options: the options of a solver that is chosen by name, such as ``{"eta": 0.5}`` or ``{"gamma": 0.96}``.

    Raises:
        InputError: the name or an option is unknown, a value is out of range, or there are options besides a
            ``Solver``, which has its own.
    """
    if not isinstance(solver, str):
        return _checked_instance(solver, options)
    if solver not in SOLVERS:
        raise UnknownName("solver", solver, SOLVERS)
    return build(SOLVERS[solver], solver, options)


def _checked_instance(solver: object, options: Mapping[str, Any] | None) -> "Solver":
    from ..core.contracts import Solver

    if not isinstance(solver, Solver):
        raise InputError(
            f"a {type(solver).__name__} is neither a solver nor the name of one; use one of: {', '.join(SOLVERS)}.",
            parameter="solver",
        )
    if options:
        raise InputError("they apply to the name of a solver; a solver object has its own.", parameter="options")
    return solver
