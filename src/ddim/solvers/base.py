"""What a solver is: one step between two nodes of a grid, on a state that is a value."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.path import Node
from ..core.prediction import Pair

State = Mapping[str, Tensor]
"""A solver's state: named tensors of one shape [N, ...]; ``x`` is the sample itself. Nothing else is kept anywhere."""

Noise = Callable[[Tensor], Tensor]
"""Standard normal numbers of the shape, dtype and device of its argument, new ones each call."""


@runtime_checkable
class Solver(Protocol):
    """How one step is made. Frozen; options are its fields.

    Attributes:
        name: as in the registry.
        order: of the endpoint's error in the step, fitted by ``tests/laws``; 0 for a solver with injected noise only.
        nfe: network calls a step.
        paper: where the formula comes from.
        stochastic: whether it draws noise.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    nfe: ClassVar[int]
    paper: ClassVar[str]

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        ...

    def init(self, x: Tensor, grid: Grid) -> State:
        """The state at ``grid[0]`` from a lone x, [N, ...]."""
        ...

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """From ``grid[i]`` to ``grid[i + 1]``."""
        ...

    def read(self, state: State) -> Tensor:
        """The sample in a state, [N, ...]."""
        ...


def options_of(method: Any) -> dict[str, Any]:
    """What a solver or an inversion was set to: the fields that its constructor takes."""
    return {f.name: getattr(method, f.name) for f in fields(method) if f.init}


class Deterministic:
    """The parts that all one-state solvers without noise share."""

    @property
    def stochastic(self) -> bool:
        """Never draws noise."""
        return False

    def init(self, x: Tensor, grid: Grid) -> State:
        """x alone."""
        return {"x": x}

    def read(self, state: State) -> Tensor:
        """x."""
        return state["x"]


def move(pair: Pair, node: Node, std: float = 0.0, z: Tensor | None = None) -> Tensor:
    """x at a node from a pair: alpha x0 + sqrt(sigma^2 - std^2) eps + std z (Eq. 12 of Song et al. 2021)."""
    if std == 0.0:
        return node.alpha * pair.x0 + node.sigma * pair.eps
    if z is None:
        raise ValueError("a step that injects noise needs a source of it")
    direction = math.sqrt(max(node.sigma**2 - std**2, 0.0))
    return node.alpha * pair.x0 + direction * pair.eps + std * z


def shift(x: Tensor, eps: Tensor, t: Node, s: Node) -> Tensor:
    """The deterministic step of x from t to s along a given eps: (alpha_s / alpha_t)(x - sigma_t eps) + sigma_s eps.

    The same as ``move`` for a pair that explains x, and its own inverse with t and s exchanged.
    """
    ratio = s.alpha / t.alpha
    return ratio * x + (s.sigma - ratio * t.sigma) * eps


def implicit_step(denoise: Denoiser, x: Tensor, s: Node, t: Node, iterations: int) -> Tensor:
    """The x_t whose DDIM step to s is x, by fixed-point iteration from x itself.

    Args:
        denoise: asked at t only, so that the first iterate is plain DDIM inversion with the destination's label.
        x: on s, [N, ...].
        s, t: where x is, and the noisier node it goes to.
        iterations: at least 1.
    """
    guess = x
    for _ in range(iterations):
        guess = shift(x, denoise(guess, t).eps, s, t)
    return guess


def power(base: float, exponent: int) -> float:
    """base ** exponent, inf where floats end."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf
