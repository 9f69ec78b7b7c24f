"""Exact inversion: any reversible solver, run backwards on its whole state."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import DDIMWarning
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.solve import OnStep, solve_back
from ..solvers.base import State, options_of
from ..solvers.lattice import ReversibleSolver


@dataclass(frozen=True)
class ExactInversion:
    """Takes the image to a whole state at the data end and undoes every step; the same integers bring it forward again.

    Args:
        reversible: the solver; the method carries its name, its options and its paper.
    """

    reversible: ReversibleSolver

    @property
    def name(self) -> str:
        """The solver's."""
        return self.reversible.name

    @property
    def exact(self) -> bool:
        """True."""
        return True

    @property
    def paper(self) -> str:
        """The solver's."""
        return self.reversible.paper

    @property
    def nfe(self) -> int:
        """The solver's; two-value solvers make a few calls more at the data end, once."""
        return self.reversible.nfe

    @property
    def order(self) -> int:
        """The solver's."""
        return self.reversible.order

    def amplification(self, grid: Grid) -> float:
        """The solver's."""
        return self.reversible.amplification(grid)

    @property
    def options(self) -> dict[str, Any]:
        """The solver's fields."""
        return options_of(self.reversible)

    def solver(self) -> ReversibleSolver:
        """The solver itself."""
        return self.reversible

    def invert(self, denoise: Denoiser, x0: Tensor, grid: Grid, on_step: OnStep | None = None) -> State:
        """The whole state at ``grid[first]``; a DDIMWarning where it comes back but is no latent of the prior."""
        with torch.no_grad():
            state = self.reversible.from_image(denoise, x0, grid)
        state = solve_back(denoise, self.reversible, state, grid, on_step=on_step)
        self._check_spread(state, grid)
        return state

    def _check_spread(self, state: State, grid: Grid) -> None:
        node = grid[self.reversible.first(grid)]
        spread = float(self.reversible.read(state).double().square().mean().sqrt()) / math.hypot(node.alpha, node.sigma)
        low, high = self.reversible.spread
        if not low <= spread <= high:
            warnings.warn(
                f"The code of {self.name} in {grid.steps} steps comes back to the bit, but it is no latent to edit or "
                f"to mix: its spread is {spread:.2g} times that of noise; {self.reversible.remedy}.",
                DDIMWarning,
                stacklevel=3,
            )
