"""Base classes of inversions that sample with DDIM or that step to noise by themselves, and the DDIM pivot."""

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor

from ..core.contracts import Inversion, InversionProblem, InversionResult, OnStep, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.solve import BackwardSolver, solve_back
from ..solvers.ddim import DDIM
from . import make_inversion
from .extras import PATHS, TRAJECTORY


def recorder(nodes: list[Tensor], on_step: OnStep | None) -> OnStep:
    """Returns a callback for ``solve_back`` that appends each sample to ``nodes``, and then calls ``on_step``."""

    def keep(i: int, state: State) -> None:
        nodes.append(state["x"])
        if on_step is not None:
            on_step(i, state)

    return keep


class ByDDIM(Inversion):
    """An inversion whose images are reconstructed by deterministic DDIM."""

    def solver(self) -> Solver:
        """Returns DDIM with eta = 0."""
        return DDIM()


class Stepwise(Inversion, BackwardSolver):
    """An inversion that is defined by its step from data to noise, ``unstep``."""

    def first(self, grid: Grid) -> int:
        """Returns 0: the steps reach the noisy end of the grid."""
        return 0

    def read(self, state: State) -> Tensor:
        """Returns the sample that a state holds, [N, ...]."""
        return state["x"]

    @abstractmethod
    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """Returns the state at ``grid[i]`` from the one at ``grid[i + 1]``."""

    def begin(self, problem: InversionProblem, x0: Tensor, grid: Grid) -> State:
        """Returns the state at the data end, from which the steps start; by default the images alone.

        Args:
            problem: the model with its conditions, and the source of noise.
            x0: the images, [N, ...].
            grid: the grid of S + 1 nodes.
        """
        return {"x": x0}

    def kept(self, begin: State, grid: Grid) -> dict[str, Tensor]:
        """Returns what the code keeps of the state at the data end, for ``LatentCode.extras``; by default nothing."""
        return {}

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Steps from the images to the noisy end; the result is the sample x there, without the rest of the state.

        With ``problem.keep_trajectory``, ``extras["trajectory"]`` has the samples at the other nodes, [N, S, ...].
        """
        denoise, nodes = problem.denoiser(problem.inversion_guidance), [x0]
        keep, first = problem.keep_trajectory, self.begin(problem, x0, grid)
        state = solve_back(denoise, self, first, grid, on_step=recorder(nodes, on_step) if keep else on_step)
        extras = {**self.kept(first, grid), **({TRAJECTORY: torch.stack(nodes[-2::-1], dim=1)} if keep else {})}
        return InversionResult({"x": self.read(state)}, grid, problem.prompts, extras)


class BySolver(Stepwise):
    """An inversion that makes the steps of its own solver on the reversed grid."""

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """Returns the state at ``grid[i]`` from the one at ``grid[i + 1]``, by a step of ``solver()``."""
        return self.solver().step(denoise, state, grid.reversed(), grid.steps - 1 - i, None)


def has_trajectory(inversion: Inversion) -> bool:
    """Returns whether the codes of an inversion hold the samples at all nodes, at least with ``keep_trajectory``."""
    return isinstance(inversion, Stepwise) or not set(PATHS).isdisjoint(inversion.keeps)


def pivot_of(
    problem: InversionProblem,
    x0: Tensor,
    grid: Grid,
    weight: float = 1.0,
    on_step: OnStep | None = None,
    by: Stepwise | None = None,
) -> Tensor:
    """Returns the pivot of the images: the trajectory of an inversion, [N, S + 1, ...].

    Args:
        problem: the model with its conditions.
        x0: the images, [N, ...].
        grid: the grid of S + 1 nodes.
        weight: the guidance weight of the inversion.
        on_step: called after each step.
        by: the inversion; by default plain DDIM inversion.

    Returns:
        the samples at all nodes; entry i is at ``grid[i]``, and the last entry is x0.
    """
    nodes, steps = [x0], cast(Stepwise, make_inversion("ddim")) if by is None else by
    first = steps.begin(problem, x0, grid)
    solve_back(problem.denoiser(weight), steps, first, grid, on_step=recorder(nodes, on_step))
    return torch.stack(nodes[::-1], dim=1)
