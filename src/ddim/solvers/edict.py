"""EDICT: two coupled sequences, each stepped with the other's eps, and mixed; invertible by algebra."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..denoiser import Denoiser
from ..errors import InputError
from ..grid import Grid
from .base import Noise, State, need_signal, power, shift


@dataclass(frozen=True)
class EDICT:
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

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise InputError(f"{self.p:g} lies outside (0, 1]; the paper uses 0.93.", parameter="p")

    @property
    def stochastic(self) -> bool:
        """Never draws noise."""
        return False

    def init(self, x: Tensor, grid: Grid) -> State:
        """Both sequences start at x."""
        need_signal(grid, self.name)
        return {"x": x, "y": x}

    def lift(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> State:
        """Both sequences end at the image."""
        return self.init(x0, grid)

    def read(self, state: State) -> Tensor:
        """x."""
        return state["x"]

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Each half step with the other's eps, then the two mixing layers."""
        t, s, p = grid[i], grid[i + 1], self.p
        first, second = _halves(i)
        a, b = state[first], state[second]
        a = shift(a, denoise(b, t).eps, t, s)
        b = shift(b, denoise(a, t).eps, t, s)
        state = {first: a, second: b}
        x = p * state["x"] + (1 - p) * state["y"]
        return {"x": x, "y": p * state["y"] + (1 - p) * x}

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """The same in the opposite order."""
        t, s, p = grid[i], grid[i + 1], self.p
        y = (state["y"] - (1 - p) * state["x"]) / p
        state = {"x": (state["x"] - (1 - p) * y) / p, "y": y}
        first, second = _halves(i)
        a, b = state[first], state[second]
        b = shift(b, denoise(a, t).eps, s, t)
        a = shift(a, denoise(b, t).eps, s, t)
        return {first: a, second: b}

    def growth(self, grid: Grid) -> float:
        """p^(-2 S): the distance of the two sequences."""
        return power(self.p, -2 * grid.steps)


def _halves(i: int) -> tuple[str, str]:
    return ("x", "y") if i % 2 == 0 else ("y", "x")
