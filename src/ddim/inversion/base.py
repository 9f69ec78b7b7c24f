"""What inversions share that come forward by DDIM: the pivot, and a step of their own."""

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor

from ..core.contracts import Inversion, InversionProblem, InversionResult, OnStep, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.solve import Backwards, solve_back
from ..solvers.ddim import DDIM
from . import make_inversion


class ByDDIM(Inversion):
    """One that comes forward by DDIM."""

    def solver(self) -> Solver:
        """DDIM with eta = 0."""
        return DDIM()


class Stepwise(Inversion, Backwards):
    """One that goes to noise by a step of its own."""

    def first(self, grid: Grid) -> int:
        """0."""
        return 0

    def read(self, state: State) -> Tensor:
        """x."""
        return state["x"]

    @abstractmethod
    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """From node i + 1 to node i."""

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """x at the noisy end."""
        denoise = problem.denoiser(problem.inversion_guidance)
        state = solve_back(denoise, self, {"x": x0}, grid, on_step=on_step)
        return InversionResult(state, grid, problem.prompts, {})


def pivot_of(
    problem: InversionProblem, x0: Tensor, grid: Grid, weight: float = 1.0, on_step: OnStep | None = None
) -> Tensor:
    """Every node of plain DDIM inversion under one weight: [N, S + 1, ...], entry i at ``grid[i]``; one call a step."""
    nodes = [x0]

    def keep(i: int, state: State) -> None:
        nodes.append(state["x"])
        if on_step is not None:
            on_step(i, state)

    plain = cast(Backwards, make_inversion("ddim"))
    solve_back(problem.denoiser(weight), plain, {"x": x0}, grid, on_step=keep)
    return torch.stack(nodes[::-1], dim=1)
