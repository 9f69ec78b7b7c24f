"""Inversion with Heun's method: applies the solver to the reversed grid."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..solvers.heun import Heun
from .base import Stepwise


@dataclass(frozen=True)
class HeunInversion(Stepwise):
    """Inverts with Heun's method on the reversed grid, and samples with Heun's method. The round trip is not exact.

    The latent is of second order, and the round trip of third order: the leading error of a step is odd in the step
    size, so that it cancels between a step and the same step in the other direction.
    """

    name: ClassVar[str] = "heun"
    nfe: ClassVar[int] = Heun.nfe
    order: ClassVar[int] = 3
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 30.0
    paper: ClassVar[str] = Heun.paper

    def solver(self) -> Solver:
        """Returns the solver ``Heun``."""
        return Heun()

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """Returns the state at ``grid[i]`` from the one at ``grid[i + 1]``, by a Heun step on the reversed grid."""
        return Heun().step(denoise, state, grid.reversed(), grid.steps - 1 - i, None)
