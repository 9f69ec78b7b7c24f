"""Reversible Heun: the trapezoidal rule at a second sample, which is a mirror image of the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.path import Node
from .base import path_ode
from .lattice import Add, Lift, ReversibleSolver


@dataclass(frozen=True)
class ReversibleHeun(ReversibleSolver):
    """Reversible Heun (Kidger et al. 2021, arXiv 2105.13493) in the coordinate of the path; see ``PathODE``.

    The state is two samples, x and hat. Let u and v be the two in that coordinate, and f the slope at v. A step of
    length h is

        u <- u + (h / 2) f(v),    v <- 2 u - v,    u <- u + (h / 2) f(v),

    where the second f is that at the next node. A step begins with the network call that ended the step before, so
    that it makes one new call. The network is also called at the data node, so that it must not predict x0.
    """

    name: ClassVar[str] = "reversible-heun"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    extra_calls: ClassVar[int] = 1
    paper: ClassVar[str] = "Kidger et al. 2021, arXiv 2105.13493"
    keys: ClassVar[tuple[str, ...]] = ("x", "hat")
    asks_data: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    remedy: ClassVar[str] = "use another number of steps, or weaker guidance"
    spread: ClassVar[tuple[float, float]] = (0.2, 8.0)

    def first(self, grid: Grid) -> int:
        """Returns 0; or 1 where the coordinate is infinite at the first node: alpha = 0, except on rectified flow."""
        return path_ode(grid).first(grid)

    def start(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> Mapping[str, Tensor]:
        """Returns the image for both samples."""
        return {"x": x0, "hat": x0}

    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """Returns three lifts: half a step of x, the reflection of hat at the new x, and the other half step of x."""
        ode, t, s = path_ode(grid), grid[i], grid[i + 1]
        half = (ode.time(s) - ode.time(t)) / 2
        ratio = ode.weight(s) / ode.weight(t)

        def half_step(node: Node) -> Add:
            size = ode.weight(node) * half
            return lambda denoise, others: size * ode.slope(denoise(others["hat"], node))

        def reflected(denoise: Denoiser, others: Mapping[str, Tensor]) -> Tensor:
            return 2 * ratio * others["x"]

        return (Lift("x", 1.0, half_step(t)), Lift("hat", -ratio, reflected), Lift("x", ratio, half_step(s)))

    def amplification(self, grid: Grid) -> float:
        """Returns 2: where f does not change, a disturbance of x moves hat by twice as much, once."""
        return 2.0
