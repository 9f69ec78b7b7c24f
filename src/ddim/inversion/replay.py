"""Sampling with the tensors that an inversion stored for every step. ``extras`` says what they are and do."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from .._utils.errors import DDIMError
from ..core.conditioning import POOLED, TEXT, PromptConditioning
from ..core.contracts import Noise, OnStep, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.guidance import Prompts
from ..core.path import Node
from ..core.prediction import Pair
from ..core.solve import solve
from ..solvers.base import path_ode
from ..solvers.lattice import ReversibleSolver
from ..solvers.one_stage import first_node
from .extras import TUNED, TUNED_POOLED

TUNED_PARTS = {TEXT: TUNED, POOLED: TUNED_POOLED}
"""The names of the unconditional embeddings of null-text inversion, by the names of the conditions they replace."""


def replay(
    denoise: Denoiser,
    solver: Solver,
    state: State,
    grid: Grid,
    extras: Mapping[str, Tensor],
    *,
    on_step: OnStep | None = None,
) -> State:
    """Samples from a code and returns the state at the data end. Each step uses its own entry of ``extras``.

    Args:
        denoise: the denoiser, guided by the conditions that ``prompts_of`` returns.
        solver: the solver of the code.
        state: the state of the code, from ``state_of``.
        grid: the grid of S + 1 nodes.
        extras: ``LatentCode.extras``. The names in it decide what is done; the method need not be known.
        on_step: called after each step.

    Raises:
        NotFinite: the sample contains NaN or infinity after a step.
    """
    return solve(denoise, PinnedSolver(solver, extras), state, grid, noise=stored_noise(extras), on_step=on_step)


def state_of(solver: Solver, state: State, grid: Grid, device: torch.device, dtype: torch.dtype) -> State:
    """Converts the state of a code to a state of its solver.

    Args:
        solver: the solver of the code.
        state: ``LatentCode.state``.
        grid: the grid of the code.
        device: the device to move the tensors to.
        dtype: the dtype of floats, and of a lattice's entries when they are read.
    """
    on_device = {key: v.to(device) for key, v in state.items()}
    if isinstance(solver, ReversibleSolver):
        return solver.on_lattice(on_device, grid, solver.first(grid), dtype)
    return {key: v.to(dtype) for key, v in on_device.items()}


def prompts_of(prompts: PromptConditioning, grid: Grid, extras: Mapping[str, Tensor]) -> Prompts:
    """Returns the two conditions of sampling, or a function of the node if each step has its own null embedding.

    Some solvers call the network between two nodes of the grid. There that of the node with more noise is used.

    Args:
        prompts: the two conditions, N rows each.
        grid: the grid of S + 1 nodes.
        extras: ``LatentCode.extras``, which may have ``uncond_text`` [N, S, L, D] with entry i for ``grid[i]``, and
            beside it ``uncond_pooled`` [N, S, P].
    """
    if TUNED not in extras:
        return prompts
    times = [grid[i].t for i in range(grid.steps)]
    tuned = {name: extras[key] for name, key in TUNED_PARTS.items() if key in extras}
    uncond = prompts.uncond
    assert uncond is not None

    def at(node: Node) -> PromptConditioning:
        i = max(k for k, t in enumerate(times) if t >= node.t or k == 0)
        return PromptConditioning(prompts.cond, uncond.replace(**{name: each[:, i] for name, each in tuned.items()}))

    return at


class StoredNoise:
    """A source of noise that returns stored noise maps, one per call.

    Args:
        maps: the noise maps in the order of the steps, [N, S, ...].
    """

    def __init__(self, maps: Tensor) -> None:
        self.maps, self.next = maps, 0

    def __call__(self, like: Tensor) -> Tensor:
        """Returns the next noise map in the dtype and on the device of ``like``. Raises DDIMError if none is left."""
        if self.next >= self.maps.shape[1]:
            raise DDIMError(f"The code keeps {self.maps.shape[1]} noise maps; its solver asked for more.")
        self.next += 1
        return self.maps[:, self.next - 1].to(like)


def stored_noise(extras: Mapping[str, Tensor]) -> StoredNoise | None:
    """Returns a source of the noise maps in a code's ``extras``, or None if there are none."""
    return StoredNoise(extras["noise"]) if "noise" in extras else None


class SolverWrapper(Solver):
    """Abstract base class of solvers that change the step of another solver and leave the rest as it is.

    Args:
        inner: the wrapped solver.
    """

    def __init__(self, inner: Solver) -> None:
        self.inner = inner
        self.name, self.order, self.nfe, self.paper = inner.name, inner.order, inner.nfe, inner.paper  # type: ignore[misc]

    @property
    def stochastic(self) -> bool:
        """Whether the inner solver draws noise."""
        return self.inner.stochastic

    def first(self, grid: Grid) -> int:
        """Returns the index of the node whose state a code of the inner solver stores."""
        return self.inner.first(grid)

    def init(self, x: Tensor, grid: Grid) -> State:
        """Returns the inner solver's state at ``grid[0]`` for a sample x alone, [N, ...]."""
        return self.inner.init(x, grid)

    def read(self, state: State) -> Tensor:
        """Returns the sample that a state of the inner solver holds, [N, ...]."""
        return self.inner.read(state)

    @abstractmethod
    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Makes a step of the inner solver and changes its result or its denoiser."""


class PinnedSolver(SolverWrapper):
    """Wraps a solver, and sets its sample to the trajectory of the inversion after each step; see ``extras``.

    Args:
        inner: the wrapped solver.
        extras: ``pivot`` [N, S, ...], the samples to set after each step; or the same as ``asked``, where the network
            is called as well; and ``end`` [N, 1, ...], the sample to set after the last step. Without them the wrapper
            changes nothing.
        rows: the rows of the sources, one for each of N; by default all rows. With ``asked``, each source is followed
            by its targets, as many for each.
    """

    def __init__(self, inner: Solver, extras: Mapping[str, Tensor], rows: slice = slice(None)) -> None:
        super().__init__(inner)
        self.asked, self.end, self.rows = extras.get("asked"), extras.get("end"), rows
        self.pivot = extras.get("pivot", self.asked)

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Makes a step of the inner solver, then sets the pinned rows of its sample."""
        if self.asked is not None:
            denoise = offset_denoiser(denoise, self.asked[:, i], state["x"][self.rows], grid, i)
        after = self.inner.step(denoise, state, grid, i, noise)
        target = self.pivot[:, i] if self.pivot is not None else None
        if self.end is not None and i == grid.steps - 1:
            target = self.end[:, 0]
        if target is not None:
            x = after["x"].clone()
            x[self.rows] = target.to(x)
            after = {**after, "x": x}
        return after


def offset_denoiser(denoise: Denoiser, asked: Tensor, sources: Tensor, grid: Grid, i: int) -> Denoiser:
    """Returns the denoiser of one step, which calls the network where the inversion of the sources called it.

    With a* the point of that call, x* the source at ``grid[i]`` and w its weight (see ``PathODE``), a sample x is
    asked at a* + (w' / w) (x - x*), with the timestep and the weight w' of the inversion's call. In the coordinate of
    the path x is moved by the offset of the source, and the source itself is asked at a* to the bit. The slope there
    makes the step from x.

    Args:
        denoise: the model.
        asked: a*, [N, ...]: the sample of the inversion at ``grid[i + 1]``. Its timestep is that of this node, or if
            there is no noise, of ``grid[i]``.
        sources: x*, [N, ...].
        grid: the grid of S + 1 nodes.
        i: the step. The result is for calls at ``grid[i]`` with K samples for each source, next to each other.
    """
    ode, t = path_ode(grid), grid[i]
    node = first_node(grid[i + 1], t)
    # Without signal at t, x is noise alone, and the weight is that of the noise.
    scale = ode.weight(node) / ode.weight(t) if ode.weight(t) > 0 else node.sigma / t.sigma

    def ask(x: Tensor, _: Node) -> Pair:
        many = len(x) // len(sources)
        points, begins = (one.repeat_interleave(many, 0).to(x) for one in (asked, sources))
        return ode.moved(denoise(points + scale * (x - begins), node), x, t)

    return ask
