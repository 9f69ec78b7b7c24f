"""Heun's second-order method for the ODE of DDIM."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Noise, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from .base import move, path_ode


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method in the coordinate of the path (see ``PathODE``): algorithm 1 of Karras et al. 2022.

    On rectified flow this is the average of two velocities, as in ``FlowMatchHeunDiscreteScheduler`` of diffusers.

    The network is never called at sigma = 0, where its output is unreliable. A step that ends there is an Euler step.
    A step that starts there, the first of an inversion, is the inverse of that Euler step, found by two fixed-point
    iterations.
    """

    name: ClassVar[str] = "heun"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 2
    paper: ClassVar[str] = "Karras et al. 2022, arXiv 2206.00364, algorithm 1"

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Returns the state at ``grid[i + 1]``. The grid may run towards the data or towards the noise."""
        x, t, s, ode = state["x"], grid[i], grid[i + 1], path_ode(grid)
        if t.sigma == 0:
            guess = ode.step(x, ode.slope(denoise(x, s)), t, s)
            return {"x": ode.step(x, ode.slope(denoise(guess, s)), t, s)}
        pair = denoise(x, t)
        guess = move(pair, s)
        if s.sigma == 0 or ode.weight(t) == 0:
            return {"x": guess}
        return {"x": ode.step(x, (ode.slope(pair) + ode.slope(denoise(guess, s))) / 2, t, s)}
