"""O-BELM: the leapfrog method with variable step size, for the ODE in the coordinate of the path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.grid import Grid
from .base import path_ode
from .bdia import TwoNodeSolver
from .lattice import Lift


@dataclass(frozen=True)
class BELM(TwoNodeSolver):
    """The optimal Bidirectional Explicit Linear Multi-step sampler (Wang et al. 2024, arXiv 2410.07273).

    With u, r and its slope f in the coordinate of the path (see ``PathODE``), h = r_i - r_{i+1} and g = r_{i-1} - r_i:
    u_{i+1} = (h/g)^2 u_{i-1} + (1 - (h/g)^2) u_i - h (g + h) / g f_i. The first step is a DDIM step. The paper has
    u = x / alpha and r = sigma / alpha; on rectified flow, that coordinate would enlarge disturbances by about S^2 / 2.
    """

    name: ClassVar[str] = "belm"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2410.07273"

    def first(self, grid: Grid) -> int:
        """Returns 1; or 2 where the coordinate is infinite at the first node: alpha = 0, except on rectified flow."""
        return 1 + path_ode(grid).first(grid)

    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """Returns one lift of ``before``, which the formula of the class turns into x_{i+1}."""
        (a, b, c), ode = _weights(grid, i), path_ode(grid)

        def add(denoise: Denoiser, others: Mapping[str, Tensor]) -> Tensor:
            return b * others["x"] - c * ode.slope(denoise(others["x"], grid[i]))

        return (Lift("before", a, add),)

    def amplification(self, grid: Grid) -> float:
        """Returns the growth of the parasitic mode of the leapfrog method during inversion.

        Undoing step i multiplies the mode by 1 / a_i, where a_i is the weight of x_{i-1}. The result is the largest
        running product, and at least 1.
        """
        factor = largest = 1.0
        for i in range(grid.steps - 1, self.first(grid) - 1, -1):
            factor /= _weights(grid, i)[0]
            largest = max(largest, factor)
        return largest


def _weights(grid: Grid, i: int) -> tuple[float, float, float]:
    """Returns the weights of x_{i-1}, x_i and minus the slope in the formula for x_{i+1}."""
    ode, nodes = path_ode(grid), (grid[i - 1], grid[i], grid[i + 1])
    before, t, s = map(ode.time, nodes)
    u_before, u, u_next = map(ode.weight, nodes)
    h, g = t - s, before - t
    r = (h / g) ** 2
    return r * u_next / u_before, (1 - r) * u_next / u, h * (g + h) / g * u_next
