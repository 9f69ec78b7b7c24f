"""BDIA: a step forward corrected by the step that came before, so that it can be undone."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._utils.errors import InputError
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from .base import implicit_step, move, power
from .lattice import Lift, ReversibleSolver


class TwoNodes(ReversibleSolver):
    """Reversible solvers whose state is the sample at a node, ``x``, and at the noisier one next to it, ``before``."""

    keys: ClassVar[tuple[str, ...]] = ("x", "before")
    rotate: ClassVar[tuple[str, ...]] = ("x", "before")

    @abstractmethod
    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """What makes x_{i+1} of ``before``; then the two change places."""

    def enter(self, denoise: Denoiser, x: Tensor, grid: Grid, i: int) -> Mapping[str, Tensor]:
        """A DDIM step, and where it began."""
        return {"x": move(denoise(x, grid[i]), grid[i + 1]), "before": x}

    def start(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> Mapping[str, Tensor]:
        """The image, and the node before it from the implicit DDIM step.

        Three fixed-point iterations: a second value off the trajectory starts the parasitic mode of such solvers, which
        the way back may enlarge.
        """
        return {"x": x0, "before": implicit_step(denoise, x0, grid[-1], grid[-2], iterations=3)}


@dataclass(frozen=True)
class BDIA(TwoNodes):
    """Bi-Directional Integration Approximation (Zhang et al. 2023, arXiv 2307.10829).

    x_{i+1} = gamma x_{i-1} + D(x_i; i -> i+1) - gamma D(x_i; i -> i-1), with D the DDIM step; one network call
    serves both. The first step is DDIM's.

    Args:
        gamma: in (0, 1]. 1 is of second order, and its way back enlarges a disturbance by no more than the network
            does; below 1 it is of first order and the way back enlarges it by 1 / gamma a step besides.
    """

    gamma: float = 1.0

    name: ClassVar[str] = "bdia"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv 2307.10829"
    remedy: ClassVar[str] = "use fewer steps, or gamma nearer to 1"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise InputError(
                f"{self.gamma:g} lies outside (0, 1]; 0 would be DDIM, which cannot be undone.", parameter="gamma"
            )

    def first(self, grid: Grid) -> int:
        """1: the formula needs the node before."""
        return 1

    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """The formula above."""
        before, t, s, gamma = grid[i - 1], grid[i], grid[i + 1], self.gamma

        def add(denoise: Denoiser, others: Mapping[str, Tensor]) -> Tensor:
            pair = denoise(others["x"], t)
            return move(pair, s) - gamma * move(pair, before)

        return (Lift("before", gamma, add),)

    def amplification(self, grid: Grid) -> float:
        """gamma^-S."""
        return power(self.gamma, -grid.steps)
