"""EDICT: two coupled sequences, each stepped with the other's eps, and mixed; invertible by algebra."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._utils.errors import InputError
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from .base import power
from .lattice import Add, Lift, ReversibleSolver


@dataclass(frozen=True)
class EDICT(ReversibleSolver):
    """Exact Diffusion Inversion via Coupled Transformations (Wallace et al. 2023, arXiv 2211.12446).

    Args:
        p: mixing weight in (0, 1]. The two sequences part from each other by 1 / p^2 a step on the way back;
            the paper uses 0.93.

    Which sequence makes its half step first alternates with the step's number, as in the authors' work; the mixing is
    always x, then y.
    """

    p: float = 0.93

    name: ClassVar[str] = "edict"
    order: ClassVar[int] = 1
    nfe: ClassVar[int] = 2
    paper: ClassVar[str] = "Wallace et al. 2023, arXiv 2211.12446"
    keys: ClassVar[tuple[str, ...]] = ("x", "y")
    remedy: ClassVar[str] = "use fewer steps, or p nearer to 1"

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise InputError(f"{self.p:g} lies outside (0, 1]; the paper uses 0.93.", parameter="p")

    def first(self, grid: Grid) -> int:
        """0; 1 where the grid begins without signal, from which no lift can start."""
        return 0 if grid[0].alpha > 0 else 1

    def start(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> Mapping[str, Tensor]:
        """Both sequences end at the image."""
        return {"x": x0, "y": x0}

    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """Each half step with the other's eps, then the two mixing layers."""
        t, s, rest = grid[i], grid[i + 1], 1 - self.p
        first, second = ("x", "y") if i % 2 == 0 else ("y", "x")
        ratio = s.alpha / t.alpha
        slope = s.sigma - ratio * t.sigma

        def stepped(other: str) -> Add:
            return lambda denoise, others: slope * denoise(others[other], t).eps

        def mixed(other: str) -> Add:
            return lambda denoise, others: rest * others[other]

        return (
            Lift(first, ratio, stepped(second)),
            Lift(second, ratio, stepped(first)),
            Lift("x", self.p, mixed("y")),
            Lift("y", self.p, mixed("x")),
        )

    def amplification(self, grid: Grid) -> float:
        """p^(-2 S): the distance of the two sequences."""
        return power(self.p, -2 * grid.steps)
