"""Inversion with FireFlow: applies the solver to the reversed grid."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Solver
from ..solvers.fireflow import FireFlow
from .base import BySolver


@dataclass(frozen=True)
class FireFlowInversion(BySolver):
    """Inverts with FireFlow on the reversed grid, and samples with FireFlow (Deng et al. 2024). It is not exact.

    Each direction makes one network call per step, and one more in its first step. The round trip is of third order,
    for the reason that ``HeunInversion`` states. The paper writes the method for rectified flow; here it works on every
    path, in the path's own coordinate.
    """

    name: ClassVar[str] = "fireflow"
    nfe: ClassVar[int] = FireFlow.nfe
    order: ClassVar[int] = 3
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 32.0
    paper: ClassVar[str] = FireFlow.paper

    def solver(self) -> Solver:
        """Returns the solver ``FireFlow``."""
        return FireFlow()
