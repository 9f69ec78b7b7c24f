"""The midpoint method for the ODE of DDIM, known as RF-Solver."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Noise, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from .one_stage import first_guess, one_stage


@dataclass(frozen=True)
class Midpoint(Solver):
    """The midpoint method in the coordinate of the path (see ``PathODE``): RF-Solver (Wang et al. 2024).

    A half step along the slope at x leads to the middle of the step, and the step is taken along the slope there. With
    v for the slope and D for the length of the step,

        u' = u + D v(u + D/2 v(u, r), r + D/2).

    RF-Solver writes it as a Taylor expansion whose derivative is (v_middle - v) / (D/2), which is the same. The method
    is ``one_stage`` with c = 1/2 and a new slope in each step.

    The grid may run towards the data or towards the noise. Where a step begins without noise, the first call is made at
    the middle of the step, with x as it is.
    """

    name: ClassVar[str] = "midpoint"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 2
    paper: ClassVar[str] = "Runge 1895; Wang et al. 2024, arXiv 2411.04746, Algorithm 1"
    asks_between: ClassVar[bool] = True

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Returns the state at ``grid[i + 1]``."""
        x = state["x"]
        return {"x": one_stage(denoise, x, first_guess(denoise, x, grid, i, 0.5), grid, i, 0.5)[0]}
