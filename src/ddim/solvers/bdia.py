"""BDIA: a step forward corrected by the step that came before, so that it can be undone."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..denoiser import Denoiser
from ..errors import InputError
from ..grid import Grid
from .base import Noise, State, implicit_step, move, power


@dataclass(frozen=True)
class BDIA:
    """Bi-Directional Integration Approximation (Zhang et al. 2023, arXiv 2307.10829).

    x_{i+1} = gamma x_{i-1} + D(x_i; i -> i+1) - gamma D(x_i; i -> i-1), with D the DDIM step; one network call
    serves both.

    Args:
        gamma: in (0, 1]. 1 is of second order, and its way back enlarges a disturbance by no more than the network
            does; below 1 it is of first order and the way back enlarges it by 1 / gamma a step besides.
    """

    gamma: float = 1.0

    name: ClassVar[str] = "bdia"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv 2307.10829"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise InputError(
                f"{self.gamma:g} lies outside (0, 1]; 0 would be DDIM, which cannot be undone.", parameter="gamma"
            )

    @property
    def stochastic(self) -> bool:
        """Never draws noise."""
        return False

    def init(self, x: Tensor, grid: Grid) -> State:
        """x alone; the first step is DDIM's."""
        return {"x": x}

    def lift(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> State:
        """The image, and the node before it from the implicit DDIM step."""
        return lift_pair(denoise, x0, grid)

    def read(self, state: State) -> Tensor:
        """x."""
        return state["x"]

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """The formula above; at i = 0 the kept second value, or DDIM."""
        x = state["x"]
        if i == 0:
            return {"x": first_step(denoise, state, grid), "before": x}
        pair = denoise(x, grid[i])
        ahead = move(pair, grid[i + 1])
        return {"x": ahead + self.gamma * (state["before"] - move(pair, grid[i - 1])), "before": x}

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """The formula solved for x_{i-1}."""
        x, before = state["x"], state["before"]
        if i == 0:
            return {"x": before, "ahead": x}
        pair = denoise(before, grid[i])
        return {"x": before, "before": (x - move(pair, grid[i + 1])) / self.gamma + move(pair, grid[i - 1])}

    def growth(self, grid: Grid) -> float:
        """gamma^-S."""
        return power(self.gamma, -grid.steps)


def first_step(denoise: Denoiser, state: State, grid: Grid) -> Tensor:
    """x at node 1: the value kept by an inversion where there is one, else DDIM's."""
    return state["ahead"] if "ahead" in state else move(denoise(state["x"], grid[0]), grid[1])


def lift_pair(denoise: Denoiser, x0: Tensor, grid: Grid) -> State:
    """The last two nodes of a two-value solver from an image.

    Three fixed-point iterations on the implicit step: a second value off the trajectory starts the parasitic mode of
    such solvers, which the way back may enlarge.
    """
    return {"x": x0, "before": implicit_step(denoise, x0, grid[-1], grid[-2], iterations=3)}
