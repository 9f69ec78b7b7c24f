"""The loop that steps a solver along a grid: from noise to data (``solve``), from data to noise (``solve_back``)."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .._utils.errors import NotFinite
from .contracts import Noise, OnStep, Solver, State
from .denoiser import Denoiser
from .grid import Grid
from .late import late_checks, require


class BackwardSolver(Protocol):
    """Steps from data to noise: a reversible solver, or an inversion with a step of its own."""

    def first(self, grid: Grid) -> int:
        """Returns the index of the node with the most noise that it can reach."""
        ...

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """Returns the state at ``grid[i]`` from the one at ``grid[i + 1]``."""
        ...

    def read(self, state: State) -> Tensor:
        """Returns the sample that a state holds, [N, ...]."""
        ...


def solve(
    denoise: Denoiser,
    solver: Solver,
    state: State,
    grid: Grid,
    *,
    noise: Noise | None = None,
    first: int | None = None,
    last: int | None = None,
    on_step: OnStep | None = None,
) -> State:
    """Steps from node ``first`` towards the data, up to node ``last``, and returns the state there.

    Args:
        denoise: the model.
        solver: the solver that makes the steps.
        state: the state at node ``first``, as ``solver.init`` or an inversion returns it.
        grid: the grid of S + 1 nodes.
        noise: the source of noise, which a stochastic solver needs.
        first, last: the indices of two nodes, 0 <= first < last <= S. By default ``first`` is the node of the state if
            the state records one and otherwise 0, and ``last`` is S, the data.
        on_step: called after each step with the index of the node reached and the state there.

    Raises:
        NotFinite: the sample contains NaN or infinity after a step. On a GPU it may be raised a few steps late.
    """
    begin = getattr(state, "node", 0) if first is None else first
    end = grid.steps if last is None else last
    return _along(
        range(begin, end),
        lambda s, i: solver.step(denoise, s, grid, i, noise),
        solver.read,
        state,
        grid,
        1,
        on_step,
    )


def solve_back(
    denoise: Denoiser,
    solver: BackwardSolver,
    state: State,
    grid: Grid,
    *,
    first: int | None = None,
    last: int | None = None,
    on_step: OnStep | None = None,
) -> State:
    """Steps from node ``first`` towards the noise, down to node ``last``, and returns the state there.

    Args:
        denoise: the model.
        solver: a reversible solver, or an inversion that steps to noise.
        state: the state at node ``first``.
        grid: the grid of S + 1 nodes.
        first, last: the indices of two nodes, 0 <= last < first <= S. By default ``first`` is S, the data, and ``last``
            is ``solver.first(grid)``: usually 0, or the first node that a reversible solver can return to.
        on_step: called after each step with the index of the node reached and the state there.

    Raises:
        NotFinite: the sample contains NaN or infinity after a step.
    """
    start = grid.steps if first is None else first
    if last is None:
        last = solver.first(grid)
    return _along(
        range(start - 1, last - 1, -1),
        lambda s, i: solver.unstep(denoise, s, grid, i),
        solver.read,
        state,
        grid,
        0,
        on_step,
    )


def _along(
    indices: Iterable[int],
    step: Callable[[State, int], State],
    read: Callable[[State], Tensor],
    state: State,
    grid: Grid,
    offset: int,
    on_step: OnStep | None,
) -> State:
    """Makes the steps i in ``indices``. Step i ends at node i + ``offset``: 1 towards the data, 0 towards the noise."""

    def not_finite(i: int) -> NotFinite:
        a, b, number = (i, i + 1, i + 1) if offset else (i + 1, i, grid.steps - i)
        return NotFinite(
            f"The sample is no longer finite after the step from t = {grid[a].t:g} to t = {grid[b].t:g} "
            f"(step {number} of {grid.steps}): the network returned NaN or infinity, or the solver diverged.",
            step=number,
        )

    with torch.no_grad(), late_checks():
        for i in indices:
            state = step(state, i)
            require(torch.isfinite(read(state)).all(), partial(not_finite, i))
            if on_step is not None:
                on_step(i + offset, state)
    return state
