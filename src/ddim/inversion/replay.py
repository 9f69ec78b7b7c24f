"""The way forward with what a method kept: tuned embeddings, noise maps and pivots, one entry a step."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from .._utils.errors import DDIMError
from ..core.conditioning import PromptConditioning
from ..core.contracts import Noise, OnStep, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.guidance import Prompts
from ..core.path import Node
from ..core.solve import solve
from ..solvers.lattice import ReversibleSolver

TUNED = "uncond_text"


def replay(
    denoise: Denoiser,
    solver: Solver,
    state: State,
    grid: Grid,
    extras: Mapping[str, Tensor],
    *,
    on_step: OnStep | None = None,
) -> State:
    """Forwards from a code, every step with its own entry of ``extras``; the state at the data end.

    Args:
        denoise: guided, by what ``prompts_of`` gives.
        solver: that the code names.
        state: from ``resumed``.
        grid: S + 1 nodes.
        extras: as in ``LatentCode``; a method is not asked for.
        on_step: called after each step.

    Raises:
        DDIMError: the sample stopped being numbers; the step is named.
    """
    return solve(denoise, PinnedSolver(solver, extras), state, grid, noise=kept_noise(extras), on_step=on_step)


def resumed(solver: Solver, state: State, grid: Grid, device: torch.device, dtype: torch.dtype) -> State:
    """A code's state as its solver goes on with it: floats in ``dtype``, integers on their lattice."""
    there = {key: v.to(device) for key, v in state.items()}
    if isinstance(solver, ReversibleSolver):
        return solver.on_lattice(there, grid, solver.first(grid), dtype)
    return {key: v.to(dtype) for key, v in there.items()}


def prompts_of(prompts: PromptConditioning, grid: Grid, extras: Mapping[str, Tensor]) -> Prompts:
    """The two conditions of the way forward: with the unconditional text of the step that asks, where each has its own.

    Between nodes (some solvers ask there) the entry of the noisier one is taken.

    Args:
        prompts: N rows.
        grid: S + 1 nodes.
        extras: ``uncond_text`` [N, S, L, D], entry i at ``grid[i]``; or without it.
    """
    if TUNED not in extras:
        return prompts
    texts, times = extras[TUNED], [grid[i].t for i in range(grid.steps)]
    uncond = prompts.uncond
    assert uncond is not None

    def at(node: Node) -> PromptConditioning:
        i = max(k for k, t in enumerate(times) if t >= node.t or k == 0)
        return PromptConditioning(prompts.cond, uncond.replace(text=texts[:, i]))

    return at


class KeptNoise:
    """A source of noise that gives back noise maps [N, S, ...], one a call."""

    def __init__(self, maps: Tensor) -> None:
        self.maps, self.next = maps, 0

    def __call__(self, like: Tensor) -> Tensor:
        """The next map, in the dtype and on the device of ``like``."""
        if self.next >= self.maps.shape[1]:
            raise DDIMError(f"The code keeps {self.maps.shape[1]} noise maps; its solver asked for more.")
        self.next += 1
        return self.maps[:, self.next - 1].to(like)


def kept_noise(extras: Mapping[str, Tensor]) -> KeptNoise | None:
    """The noise maps among a code's ``extras``, one a step; None where there are none."""
    return KeptNoise(extras["noise"]) if "noise" in extras else None


class SolverWrapper(Solver):
    """A solver around another, as which it answers; what is beneath it changes the step.

    Args:
        inner: the other.
    """

    def __init__(self, inner: Solver) -> None:
        self.inner = inner
        self.name, self.order, self.nfe, self.paper = inner.name, inner.order, inner.nfe, inner.paper  # type: ignore[misc]

    @property
    def stochastic(self) -> bool:
        """As the inner one."""
        return self.inner.stochastic

    def first(self, grid: Grid) -> int:
        """As the inner one."""
        return self.inner.first(grid)

    def init(self, x: Tensor, grid: Grid) -> State:
        """As the inner one."""
        return self.inner.init(x, grid)

    def read(self, state: State) -> Tensor:
        """As the inner one."""
        return self.inner.read(state)

    @abstractmethod
    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """The inner step and what is put around it."""


class PinnedSolver(SolverWrapper):
    """A solver whose sample is put on ``pivot`` after each step, and on ``end`` after the last.

    Args:
        inner: the solver.
        extras: ``pivot`` [N, S, ...] and ``end`` [N, 1, ...], or nothing.
        rows: which rows of the batch are held, one for each of N; all of them by default.
    """

    def __init__(self, inner: Solver, extras: Mapping[str, Tensor], rows: list[int] | None = None) -> None:
        super().__init__(inner)
        self.pivot, self.end, self.rows = extras.get("pivot"), extras.get("end"), rows

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """The inner step, then the rows that are held."""
        after = self.inner.step(denoise, state, grid, i, noise)
        target = self.pivot[:, i] if self.pivot is not None else None
        if self.end is not None and i == grid.steps - 1:
            target = self.end[:, 0]
        if target is not None:
            x = after["x"].clone()
            x[self.rows if self.rows is not None else slice(None)] = target.to(x)
            after = {**after, "x": x}
        return after
