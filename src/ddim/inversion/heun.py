"""Inversion by a one-step solver on the reversed grid: the same formula, the other way."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..denoiser import Denoiser
from ..grid import Grid
from ..loop import OnStep, solve_back
from ..solvers.base import Solver, State, options_of
from ..solvers.heun import Heun


@dataclass(frozen=True)
class HeunInversion:
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

    def growth(self, grid: Grid) -> float:
        """1: there is no second value to part from."""
        return 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Its fields."""
        return options_of(self)

    def solver(self) -> Solver:
        """Heun."""
        return Heun()

    def read(self, state: State) -> Tensor:
        """x."""
        return state["x"]

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """From node i + 1 to node i: the solver's own step on the reversed grid."""
        return Heun().step(denoise, state, grid.reversed(), grid.steps - 1 - i, None)

    def invert(self, denoise: Denoiser, x0: Tensor, grid: Grid, on_step: OnStep | None = None) -> State:
        """x at the noisy end."""
        return solve_back(denoise, self, {"x": x0}, grid, on_step=on_step)
