"""Inversion by a one-step solver on the reversed grid: the same formula, the other way."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..solvers.heun import Heun
from .base import Stepwise


@dataclass(frozen=True)
class HeunInversion(Stepwise):
    """Heun's step from data to noise, and Heun forwards again: not exact.

    The code is of second order, the round trip of third: a step and its step back share the leading error, which is
    odd in the step's size and cancels.
    """

    name: ClassVar[str] = "heun"
    nfe: ClassVar[int] = Heun.nfe
    order: ClassVar[int] = 3
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 30.0
    paper: ClassVar[str] = Heun.paper

    def solver(self) -> Solver:
        """Heun."""
        return Heun()

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """From node i + 1 to node i: the solver's own step on the reversed grid."""
        return Heun().step(denoise, state, grid.reversed(), grid.steps - 1 - i, None)
