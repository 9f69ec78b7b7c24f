"""Write your own solver, here the midpoint rule, and use it without registering it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

import ddim
from ddim.core.contracts import Noise, Solver, State
from ddim.core.denoiser import Denoiser
from ddim.solvers.base import move, shift


@dataclass(frozen=True)
class Midpoint(Solver):
    """The midpoint rule: the network is called in the middle of a step, and its output is used for the whole step.

    "Middle" refers to the coordinates in which a step is a straight line: x / alpha against sigma / alpha on
    variance-preserving and variance-exploding paths, and x against sigma on rectified flow.
    """

    name: ClassVar[str] = "midpoint"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 2
    paper: ClassVar[str] = "Runge 1895"

    def step(self, denoise: Denoiser, state: State, grid: ddim.Grid, i: int, noise: Noise | None) -> State:
        x, t, s = state["x"], grid[i], grid[i + 1]
        middle = grid.between(i, 0.5)
        halfway = move(denoise(x, t), middle)
        pair = denoise(halfway, middle)
        straight = isinstance(grid.path, ddim.RectifiedFlow) or 0 in (t.alpha, s.alpha)
        return {"x": along(x, pair, t, s) if straight else shift(x, pair.eps, t, s)}


def along(x: torch.Tensor, pair: ddim.Pair, t: ddim.Node, s: ddim.Node) -> torch.Tensor:
    """Makes a step in x / (alpha + sigma) against sigma / (alpha + sigma), which are finite also where alpha = 0."""
    a, b = t.alpha + t.sigma, s.alpha + s.sigma  # both 1 on rectified flow
    return b * (x / a + (s.sigma / b - t.sigma / a) * (pair.eps - pair.x0))


def main(steps: int = 20) -> torch.Tensor:
    return ddim.sample(ddim.load("fashion"), 4, steps=steps, spacing="trailing", solver=Midpoint())


if __name__ == "__main__":
    print(main().shape)
