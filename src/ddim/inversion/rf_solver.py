"""RF-Solver: inverts and samples with the midpoint method."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Solver
from ..solvers.midpoint import Midpoint
from .base import BySolver


@dataclass(frozen=True)
class RFSolver(BySolver):
    """Inverts with the midpoint method on the reversed grid, and samples with it (RF-Solver, Wang et al. 2024).

    The round trip is not exact. It is of third order, for the reason that ``HeunInversion`` states. The paper writes
    the method for rectified flow; here it works on every path, in the path's own coordinate.
    """

    name: ClassVar[str] = "rf-solver"
    nfe: ClassVar[int] = Midpoint.nfe
    order: ClassVar[int] = 3
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 36.0
    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2411.04746, Algorithm 1"

    def solver(self) -> Solver:
        """Returns the solver ``Midpoint``."""
        return Midpoint()
