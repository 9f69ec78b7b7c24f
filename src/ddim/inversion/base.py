"""What an inversion is: an image to a solver's state at the noisy end, and the solver that brings it back."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..denoiser import Denoiser
from ..grid import Grid
from ..loop import OnStep
from ..solvers.base import Solver, State


@runtime_checkable
class Inversion(Protocol):
    """A way from data to noise. Frozen; options are its fields."""

    @property
    def name(self) -> str:
        """As in the registry."""
        ...

    @property
    def exact(self) -> bool:
        """Whether algebra, not approximation, brings the image back."""
        ...

    @property
    def paper(self) -> str:
        """Where it comes from."""
        ...

    @property
    def nfe(self) -> int:
        """Network calls a step on the way back."""
        ...

    @property
    def order(self) -> int:
        """Of the round trip's error in the step; for an exact one, of the solver that comes forward."""
        ...

    def growth(self, grid: Grid) -> float:
        """How far the method itself may enlarge a disturbance on the way back; 1 is no more than the network does."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """What it was set to, for the record."""
        ...

    def solver(self) -> Solver:
        """The solver that comes forward again; a ``LatentCode`` keeps its name and options."""
        ...

    def invert(self, denoise: Denoiser, x0: Tensor, grid: Grid, on_step: OnStep | None = None) -> State:
        """The whole state at ``grid[0]`` from images x0, [N, ...]."""
        ...
