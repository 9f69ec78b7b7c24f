"""A solver of one's own needs no registration to be used: here the midpoint rule, 20 lines."""

from dataclasses import dataclass
from typing import ClassVar

import torch

import ddim
from ddim.core.denoiser import Denoiser
from ddim.core.path import ddpm_linear
from ddim.solvers.base import Deterministic, Noise, State, shift


@dataclass(frozen=True)
class Midpoint(Deterministic):
    """x / alpha against sigma / alpha, with eps asked for halfway between two nodes."""

    name: ClassVar[str] = "midpoint"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 2
    paper: ClassVar[str] = "Runge 1895"

    def step(self, denoise: Denoiser, state: State, grid: ddim.Grid, i: int, noise: Noise | None) -> State:
        x, t, s = state["x"], grid[i], grid[i + 1]
        middle = ddpm_linear().node((t.t + s.t) / 2)
        halfway = shift(x, denoise(x, t).eps, t, middle)
        return {"x": shift(x, denoise(halfway, middle).eps, t, s)}


def main(steps: int = 20) -> torch.Tensor:
    model = ddim.load("fashion")
    grid = ddim.make_grid(model.path, steps, "trailing")
    solver = Midpoint()
    x = torch.randn(4, *model.shape, generator=torch.Generator().manual_seed(0))
    end = ddim.solve(model.denoiser(), solver, solver.init(x, grid), grid)
    return model.decode(solver.read(end))


if __name__ == "__main__":
    print(main().shape)
