"""FireFlow: the midpoint method with the slope of the step before, at one network call per step."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Noise, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from .base import path_ode
from .one_stage import first_guess, one_stage


@dataclass(frozen=True)
class FireFlow(Solver):
    """FireFlow in the coordinate of the path (see ``PathODE``): Deng et al. 2024, Algorithm 1.

    A half step along the slope of the step before leads to the middle of the step, and the step is taken along the
    slope there, which the next step uses. The old slope is wrong by one order of the step size, and the half step
    therefore by two, so that the method keeps the order 2 of ``midpoint`` at half of its calls. The first step makes
    one call more. The method is ``one_stage`` with c = 1/2 and the slope that was kept.

    The grid may run towards the data or towards the noise. Where the first step begins without noise, its first call
    is made at the middle of the step, with x as it is.
    """

    name: ClassVar[str] = "fireflow"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    extra_calls: ClassVar[int] = 1
    paper: ClassVar[str] = "Deng et al. 2024, arXiv 2412.07517, Algorithm 1"
    asks_between: ClassVar[bool] = True

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Returns the state at ``grid[i + 1]``, with the slope of this step."""
        x, ode = state["x"], path_ode(grid)
        if "slope" in state:
            guess = ode.step(x, state["slope"], grid[i], grid.between(i, 0.5))
        else:
            guess = first_guess(denoise, x, grid, i, 0.5)
        x, pair = one_stage(denoise, x, guess, grid, i, 0.5)
        return {"x": x, "slope": ode.slope(pair)}
