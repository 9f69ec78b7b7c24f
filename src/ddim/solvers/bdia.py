"""BDIA: combines a DDIM step with the previous one, so that the step can be undone."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._utils.errors import InputError
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from .base import move, power
from .lattice import Lift, ReversibleSolver
from .one_stage import implicit_step


class TwoNodeSolver(ReversibleSolver):
    """A reversible solver whose state is the sample at two nodes: ``x`` at the current, ``before`` at the previous one.

    The previous node is the neighbour with more noise.
    """

    keys: ClassVar[tuple[str, ...]] = ("x", "before")
    rotate: ClassVar[tuple[str, ...]] = ("x", "before")

    @abstractmethod
    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """Returns the lift that turns ``before`` into x_{i+1}; after it, ``x`` and ``before`` are exchanged."""

    def enter(self, denoise: Denoiser, x: Tensor, grid: Grid, i: int) -> Mapping[str, Tensor]:
        """Makes a DDIM step, and keeps the sample at its start as ``before``."""
        return {"x": move(denoise(x, grid[i]), grid[i + 1]), "before": x}

    def start(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> Mapping[str, Tensor]:
        """Returns the image as ``x``, and as ``before`` the sample from which a DDIM step ends at the image.

        ``before`` takes three fixed-point iterations. A value off the trajectory would start the parasitic mode of
        two-node methods, which inversion may enlarge.
        """
        return {"x": x0, "before": implicit_step(denoise, x0, grid, grid.steps - 1, iterations=3)}


@dataclass(frozen=True)
class BDIA(TwoNodeSolver):
    """Bi-Directional Integration Approximation (Zhang et al. 2023, arXiv 2307.10829).

    x_{i+1} = gamma x_{i-1} + D(x_i; i -> i+1) - gamma D(x_i; i -> i-1), where D is the DDIM step. Both D share one
    network call. The first step is a DDIM step.

    Args:
        gamma: in (0, 1]. With 1, the method is of second order, and its inversion enlarges a disturbance no more than
            the network does. Below 1, it is of first order, and its inversion also multiplies a disturbance by
            1 / gamma in every step.

    Raises:
        InputError: ``gamma`` lies outside (0, 1].
    """

    gamma: float = 1.0

    name: ClassVar[str] = "bdia"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv 2307.10829"
    remedy: ClassVar[str] = "use weaker guidance, fewer steps, or gamma nearer to 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma <= 1:
            raise InputError(
                f"{self.gamma:g} lies outside (0, 1]; 0 would be DDIM, which cannot be undone.", parameter="gamma"
            )

    def first(self, grid: Grid) -> int:
        """Returns 1, because the formula uses the sample at the previous node."""
        return 1

    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """Returns one lift of ``before``, which the formula of the class turns into x_{i+1}."""
        before, t, s, gamma = grid[i - 1], grid[i], grid[i + 1], self.gamma

        def add(denoise: Denoiser, others: Mapping[str, Tensor]) -> Tensor:
            pair = denoise(others["x"], t)
            return move(pair, s) - gamma * move(pair, before)

        return (Lift("before", gamma, add),)

    def amplification(self, grid: Grid) -> float:
        """Returns gamma^-S: each undone step divides ``before`` by gamma."""
        return power(self.gamma, -grid.steps)
