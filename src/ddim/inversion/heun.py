"""Inversion with Heun's method: applies the solver to the reversed grid."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Solver
from ..solvers.heun import Heun
from .base import BySolver


@dataclass(frozen=True)
class HeunInversion(BySolver):
    """Inverts with Heun's method on the reversed grid, and samples with Heun's method. The round trip is not exact.

    The latent is of second order, and the round trip of third order: the leading error of a step is odd in the step
    size, so that it cancels between a step and the same step in the other direction.
    """

    name: ClassVar[str] = "heun"
    nfe: ClassVar[int] = Heun.nfe
    order: ClassVar[int] = 3
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 30.0
    paper: ClassVar[str] = Heun.paper

    def solver(self) -> Solver:
        """Returns the solver ``Heun``."""
        return Heun()
