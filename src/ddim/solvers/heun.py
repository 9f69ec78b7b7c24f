"""Heun's second-order method for the ODE of DDIM."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Noise, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from .base import shift


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method for x / alpha as a function of sigma / alpha: algorithm 1 of Karras et al. 2022 (arXiv 2206.00364).

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
        x, t, s = state["x"], grid[i], grid[i + 1]
        if t.sigma == 0:
            guess = shift(x, denoise(x, s).eps, t, s)
            return {"x": shift(x, denoise(guess, s).eps, t, s)}
        pair = denoise(x, t)
        guess = s.alpha * pair.x0 + s.sigma * pair.eps
        if s.sigma == 0 or t.alpha == 0:
            return {"x": guess}
        return {"x": shift(x, (pair.eps + denoise(guess, s).eps) / 2, t, s)}
