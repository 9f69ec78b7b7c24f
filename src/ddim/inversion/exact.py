"""Exact inversion: any reversible solver, run backwards on its whole state."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import DDIMWarning
from ..grid import Grid
from ..loop import OnStep, solve_back
from ..solvers.base import Reversible, State, options_of

LARGEST_ROUNDING = 1e-3
"""The largest rounding of a number in a code that goes untold: beyond it pictures, which span 2, come back at some 60
dB or less."""


@dataclass(frozen=True)
class ExactInversion:
    """Lifts the image to a whole state at the data end and walks that back; algebra brings it forward again.

    Args:
        reversible: the solver; the method carries its name, its options and its paper.
    """

    reversible: Reversible

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

    def growth(self, grid: Grid) -> float:
        """The solver's."""
        return self.reversible.growth(grid)

    @property
    def options(self) -> dict[str, Any]:
        """The solver's fields."""
        return options_of(self.reversible)

    def solver(self) -> Reversible:
        """The solver itself."""
        return self.reversible

    def invert(self, denoise: Denoiser, x0: Tensor, grid: Grid, on_step: OnStep | None = None) -> State:
        """The whole state at ``grid[0]``; a DDIMWarning where its dtype rounds parts of the image away."""
        with torch.no_grad():
            state = self.reversible.lift(denoise, x0, grid)
        state = solve_back(denoise, self.reversible, state, grid, on_step=on_step)
        self._check_rounding(state, grid)
        return state

    def _check_rounding(self, state: State, grid: Grid) -> None:
        dtype = next(iter(state.values())).dtype
        largest = max(float(values.abs().max()) for values in state.values())
        if not largest * torch.finfo(dtype).eps <= LARGEST_ROUNDING:
            name = str(dtype).removeprefix("torch.")
            warnings.warn(
                f"The code of {self.name} in {grid.steps} steps is so large that {name} rounds parts of the picture "
                f"away (growth {self.growth(grid):.0e}). Use fewer steps, options of less growth, or dtype float64.",
                DDIMWarning,
                stacklevel=3,
            )
