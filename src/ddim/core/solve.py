"""The only loop: along a grid, forwards or backwards."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from .._utils.errors import NotFinite
from .contracts import Noise, OnStep, Solver, State
from .denoiser import Denoiser
from .grid import Grid


class Backwards(Protocol):
    """What can go from data to noise: a reversible solver, or an inversion's approximate step."""

    def first(self, grid: Grid) -> int:
        """The node as far as which it goes."""
        ...

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """From ``grid[i + 1]`` to ``grid[i]``."""
        ...

    def read(self, state: State) -> Tensor:
        """The sample in a state."""
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
    """Forwards, from node ``first`` (where the state is, by default) to node ``last`` (the data by default).

    Args:
        denoise: the model.
        solver: how a step is made.
        state: at node ``first``, as ``solver.init`` or an inversion gives it.
        grid: S + 1 nodes.
        noise: needed by a stochastic solver.
        first, last: 0 <= first < last <= S.
        on_step: called after each step.

    Raises:
        NotFinite: the sample stopped being numbers; the step is named.
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
    solver: Backwards,
    state: State,
    grid: Grid,
    *,
    first: int | None = None,
    last: int | None = None,
    on_step: OnStep | None = None,
) -> State:
    """Backwards, from node ``first`` (the data by default) to the noisier node ``last``; as ``solve`` otherwise.

    By default ``last`` is 0, or the node as far as which a reversible solver can be undone.
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
    ahead: int,
    on_step: OnStep | None,
) -> State:
    with torch.no_grad():
        for i in indices:
            state = step(state, i)
            if not bool(torch.isfinite(read(state)).all()):
                a, b, number = (i, i + 1, i + 1) if ahead else (i + 1, i, grid.steps - i)
                raise NotFinite(
                    f"The sample is no longer finite after the step from t = {grid[a].t:g} to t = {grid[b].t:g} "
                    f"(step {number} of {grid.steps}): the network returned NaN or infinity, or the solver diverged.",
                    step=number,
                )
            if on_step is not None:
                on_step(i + ahead, state)
    return state
