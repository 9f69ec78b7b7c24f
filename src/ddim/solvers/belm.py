"""O-BELM: the leapfrog method with variable step size, for x / alpha as a function of sigma / alpha."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.grid import Grid
from .bdia import TwoNodeSolver
from .lattice import Lift


@dataclass(frozen=True)
class BELM(TwoNodeSolver):
    """The optimal Bidirectional Explicit Linear Multi-step sampler (Wang et al. 2024, arXiv 2410.07273).

    With u = x / alpha, s = sigma / alpha, h = s_i - s_{i+1} and g = s_{i-1} - s_i:
    u_{i+1} = (h/g)^2 u_{i-1} + (1 - (h/g)^2) u_i - h (g + h) / g eps_i. The first step is a DDIM step.
    """

    name: ClassVar[str] = "belm"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2410.07273"

    def first(self, grid: Grid) -> int:
        """Returns 1; or 2 if alpha = 0 at the first node, because the formula divides by alpha."""
        return 1 if grid[0].alpha > 0 else 2

    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """Returns one lift of ``before``, which the formula of the class turns into x_{i+1}."""
        a, b, c = _weights(grid, i)

        def add(denoise: Denoiser, others: Mapping[str, Tensor]) -> Tensor:
            return b * others["x"] - c * denoise(others["x"], grid[i]).eps

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
    """Returns the weights of x_{i-1}, x_i and -eps_i in the formula for x_{i+1}."""
    before, t, s = grid[i - 1], grid[i], grid[i + 1]
    h, g = t.ratio - s.ratio, before.ratio - t.ratio
    r = (h / g) ** 2
    return r * s.alpha / before.alpha, (1 - r) * s.alpha / t.alpha, h * (g + h) / g * s.alpha
