"""What inversions share that keep nothing but x, and so need no more than a one-value solver forwards."""

from typing import Any

from torch import Tensor

from ..denoiser import Denoiser
from ..grid import Grid
from ..loop import Backwards, OnStep, solve_back
from ..solvers.base import Solver, State, options_of
from ..solvers.ddim import DDIM


class OneValue:
    """The parts that are the same for all of them; a dataclass beneath it has the options."""

    def growth(self, grid: Grid) -> float:
        """1: there is no second value to part from."""
        return 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Its fields."""
        return options_of(self)

    def solver(self) -> Solver:
        """DDIM with eta = 0."""
        return DDIM()


class StepwiseBack(OneValue, Backwards):
    """One that walks back by a step of its own, ``unstep``."""

    def read(self, state: State) -> Tensor:
        """x."""
        return state["x"]

    def invert(self, denoise: Denoiser, x0: Tensor, grid: Grid, on_step: OnStep | None = None) -> State:
        """x at the noisy end."""
        return solve_back(denoise, self, {"x": x0}, grid, on_step=on_step)
