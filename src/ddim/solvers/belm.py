"""O-BELM: leapfrog with the true, uneven steps, in x / alpha against sigma / alpha."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..denoiser import Denoiser
from ..grid import Grid
from .base import Noise, State, need_signal
from .bdia import first_step, lift_pair


@dataclass(frozen=True)
class BELM:
    """The optimal Bidirectional Explicit Linear Multi-step sampler (Wang et al. 2024, arXiv 2410.07273).

    With u = x / alpha, s = sigma / alpha, h = s_i - s_{i+1} and g = s_{i-1} - s_i:
    u_{i+1} = (h/g)^2 u_{i-1} + (1 - (h/g)^2) u_i - h (g + h) / g eps_i.
    """

    name: ClassVar[str] = "belm"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2410.07273"

    @property
    def stochastic(self) -> bool:
        """Never draws noise."""
        return False

    def init(self, x: Tensor, grid: Grid) -> State:
        """x alone; the first step is DDIM's."""
        need_signal(grid, self.name)
        return {"x": x}

    def lift(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> State:
        """The image, and the node before it from the implicit DDIM step."""
        need_signal(grid, self.name)
        return lift_pair(denoise, x0, grid)

    def read(self, state: State) -> Tensor:
        """x."""
        return state["x"]

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """The formula above; at i = 0 the kept second value, or DDIM."""
        x = state["x"]
        if i == 0:
            return {"x": first_step(denoise, state, grid), "before": x}
        a, b, c = _weights(grid, i)
        return {"x": a * state["before"] + b * x - c * denoise(x, grid[i]).eps, "before": x}

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """The formula solved for x_{i-1}."""
        x, before = state["x"], state["before"]
        if i == 0:
            return {"x": before, "ahead": x}
        a, b, c = _weights(grid, i)
        return {"x": before, "before": (x - b * before + c * denoise(before, grid[i]).eps) / a}

    def growth(self, grid: Grid) -> float:
        """The parasitic mode's factor: the largest product of a, or of 1 / a, over the way back."""
        factor = largest = 1.0
        for i in range(grid.steps - 1, 0, -1):
            factor /= _weights(grid, i)[0]
            largest = max(largest, factor)
        return largest


def _weights(grid: Grid, i: int) -> tuple[float, float, float]:
    """Weights of x_{i-1}, x_i and -eps_i for x_{i+1}."""
    before, t, s = grid[i - 1], grid[i], grid[i + 1]
    h, g = t.ratio - s.ratio, before.ratio - t.ratio
    r = (h / g) ** 2
    return r * s.alpha / before.alpha, (1 - r) * s.alpha / t.alpha, h * (g + h) / g * s.alpha
