"""What inversions share whose way forward is a solver with one value: no second one that could part from it."""

from abc import abstractmethod
from typing import Any

from torch import Tensor

from .._utils.errors import InputError
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.solve import Backwards, OnStep, solve_back
from ..solvers.base import Solver, State, options_of
from ..solvers.ddim import DDIM


class OneValue:
    """The parts that are the same for all of them; a dataclass beneath it has the options."""

    def amplification(self, grid: Grid) -> float:
        """1: an error in the code is not made larger by a second value."""
        return 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Its fields."""
        return options_of(self)


class Walks:
    """One that knows of prompts and guidance: ``walk`` in place of ``invert``."""

    name: str

    def invert(self, *_: object, **__: object) -> State:
        """Raises InputError: what it needs is a scene."""
        raise InputError(
            f"{self.name!r} knows of prompts and guidance, which a bare denoiser does not tell; use "
            f"ddim.invert(model, images, method={self.name!r}), or its walk with a InversionProblem.",
            parameter="method",
        )


class ByDDIM(OneValue):
    """One that comes forward by DDIM."""

    def solver(self) -> Solver:
        """DDIM with eta = 0."""
        return DDIM()


class Stepwise(Backwards):
    """One that walks back by a step of its own."""

    def read(self, state: State) -> Tensor:
        """x."""
        return state["x"]

    @abstractmethod
    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """From node i + 1 to node i."""

    def invert(self, denoise: Denoiser, x0: Tensor, grid: Grid, on_step: OnStep | None = None) -> State:
        """x at the noisy end."""
        return solve_back(denoise, self, {"x": x0}, grid, on_step=on_step)
