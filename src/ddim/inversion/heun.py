"""Inversion by a one-step solver on the reversed grid: the same formula, the other way."""

from dataclasses import dataclass, field

from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..solvers.base import Solver, State
from ..solvers.heun import Heun
from .plain import OneValue, Stepwise


@dataclass(frozen=True)
class HeunInversion(OneValue, Stepwise):
    """Heun's step from data to noise, and Heun forwards again: not exact.

    The code is of second order, the round trip of third: a step and its step back share the leading error, which is
    odd in the step's size and cancels.
    """

    name: str = field(default="heun", init=False, repr=False)
    order: int = field(default=3, init=False, repr=False)
    exact: bool = field(default=False, init=False, repr=False)
    paper: str = field(default=Heun.paper, init=False, repr=False)

    @property
    def nfe(self) -> int:
        """Two a step."""
        return Heun.nfe

    def solver(self) -> Solver:
        """Heun."""
        return Heun()

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """From node i + 1 to node i: the solver's own step on the reversed grid."""
        return Heun().step(denoise, state, grid.reversed(), grid.steps - 1 - i, None)
