"""EDICT: two coupled samples, each of which steps with the eps of the other; invertible by algebra."""

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

    The state is two samples x and y. In each step both make a DDIM step with the eps of the other, and are then mixed.
    As in the authors' work, x steps first in steps of even number and y in steps of odd number; x is always mixed
    before y.

    Args:
        p: the mixing weight, in (0, 1]. Inversion multiplies the distance of x and y by 1 / p^2 in every step. The
            paper uses 0.93.

    Raises:
        InputError: ``p`` lies outside (0, 1].
    """

    p: float = 0.93

    name: ClassVar[str] = "edict"
    order: ClassVar[int] = 1
    nfe: ClassVar[int] = 2
    paper: ClassVar[str] = "Wallace et al. 2023, arXiv 2211.12446"
    keys: ClassVar[tuple[str, ...]] = ("x", "y")
    remedy: ClassVar[str] = "use weaker guidance, fewer steps, or p nearer to 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p <= 1:
            raise InputError(f"{self.p:g} lies outside (0, 1]; the paper uses 0.93.", parameter="p")

    def first(self, grid: Grid) -> int:
        """Returns 0; or 1 if alpha = 0 at the first node, because the DDIM step divides by alpha."""
        return 0 if grid[0].alpha > 0 else 1

    def start(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> Mapping[str, Tensor]:
        """Returns the image for both samples."""
        return {"x": x0, "y": x0}

    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """Returns four lifts: a DDIM step of each sample with the eps of the other, then the mixing of x and of y."""
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
        """Returns p^(-2 S), the growth of the distance of the two samples over S steps of inversion."""
        return power(self.p, -2 * grid.steps)
