"""Formulas that solvers share: steps between two nodes from predicted x0 and eps."""

import math
from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..core.contracts import Noise, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.path import Node, RectifiedFlow
from ..core.prediction import Pair


def move(pair: Pair, node: Node, std: float = 0.0) -> Tensor:
    """Returns the mean of x at a node: alpha x0 + sqrt(sigma^2 - std^2) eps (Song et al. 2021, Eq. 12).

    Args:
        pair: the predicted x0 and eps.
        node: where the step ends.
        std: the standard deviation of the noise that is to be added, at most ``node.sigma``.
    """
    direction = node.sigma if std == 0.0 else math.sqrt(max(node.sigma**2 - std**2, 0.0))
    return node.alpha * pair.x0 + direction * pair.eps


class NoisySolver(Solver):
    """Abstract base class of solvers whose step ends at mean + std z, with new noise z.

    An inversion that stores noise maps solves this for z; see ``EditFriendly``.
    """

    @abstractmethod
    def moments(self, denoise: Denoiser, x: Tensor, grid: Grid, i: int) -> tuple[Tensor, float]:
        """Returns the mean and the standard deviation of the sample at ``grid[i + 1]``, given x at ``grid[i]``.

        Args:
            denoise: the model, which is called at ``grid[i]``.
            x: [N, ...].
            grid: the grid of S + 1 nodes.
            i: the step.
        """

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Returns the state at ``grid[i + 1]``. Raises ValueError if the step draws noise and there is no source."""
        mean, std = self.moments(denoise, state["x"], grid, i)
        if std == 0:
            return {"x": mean}
        if noise is None:
            raise ValueError(f"{self.name} needs a source of noise")
        return {"x": mean + std * noise(mean)}


def shift(x: Tensor, eps: Tensor, t: Node, s: Node) -> Tensor:
    """Returns the deterministic step of x from t to s for a known eps.

    The formula is (alpha_s / alpha_t) (x - sigma_t eps) + sigma_s eps. It equals ``move`` if the pair satisfies
    x = alpha x0 + sigma eps. With t and s exchanged it is its own inverse.
    """
    ratio = s.alpha / t.alpha
    return ratio * x + (s.sigma - ratio * t.sigma) * eps


def power(base: float, exponent: int) -> float:
    """Returns base ** exponent, or infinity if the result exceeds the range of floats."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class PathODE:
    """The ODE of deterministic sampling in the coordinate of a path: du / dr = slope, where x = weight * u.

    On rectified flow, u = x, r = sigma, and the slope is the velocity eps - x0. On other paths, u = x / alpha,
    r = sigma / alpha, and the slope is eps (Song et al. 2021, Eq. 14). ``Grid.between`` measures in the same r.

    Attributes:
        straight: whether the path is rectified flow.
    """

    straight: bool

    def weight(self, node: Node) -> float:
        """Returns the factor of u in x = weight * u."""
        return 1.0 if self.straight else node.alpha

    def time(self, node: Node) -> float:
        """Returns r; it is infinite where alpha = 0, except on rectified flow."""
        return node.sigma if self.straight else node.ratio

    def slope(self, pair: Pair) -> Tensor:
        """Returns du / dr for a predicted pair."""
        return velocity(pair) if self.straight else pair.eps

    def step(self, x: Tensor, slope: Tensor, t: Node, s: Node) -> Tensor:
        """Returns the step of x from t to s along a known slope, which may be towards the data or towards the noise.

        The formula is that of Euler's method for u. On paths other than rectified flow it is ``shift``.
        """
        ratio = self.weight(s) / self.weight(t)
        return ratio * x + (s.sigma - ratio * t.sigma) * slope

    def along(self, x: Tensor, pair: Pair, t: Node, s: Node) -> Tensor:
        """Returns the step of x from t to s along the slope of a pair, towards the data or towards the noise.

        At a node without signal r is infinite, except on rectified flow, and eps there is the sample itself, which
        says nothing. A step from or to such a node is Euler's for x / sigma against alpha / sigma, whose slope is x0.

        Args:
            x: the sample at t, [N, ...].
            pair: x0 and eps, predicted at t or elsewhere.
            t, s: the nodes where the step begins and ends.
        """
        if t.sigma > 0 and 0 in (self.weight(t), self.weight(s)):
            return s.sigma / t.sigma * (x - t.alpha * pair.x0) + s.alpha * pair.x0
        return self.step(x, self.slope(pair), t, s)

    def moved(self, pair: Pair, x: Tensor, node: Node) -> Pair:
        """Returns the pair of x at a node that has the slope of a pair which was predicted elsewhere.

        At a node without signal, except on rectified flow, it has the x0 of that pair; see ``along``.
        """
        if self.weight(node) == 0:
            return Pair(pair.x0, x / node.sigma)
        slope = self.slope(pair)
        if self.straight:
            return Pair(x - node.sigma * slope, x + node.alpha * slope)
        return Pair((x - node.sigma * slope) / node.alpha, slope)

    def first(self, grid: Grid) -> int:
        """Returns the first step of which both ends have a finite r: 0 or 1."""
        return 0 if math.isfinite(self.time(grid[0])) else 1


def straight(node: Node) -> tuple[float, float]:
    """Returns (scale, time) of a node as one of rectified flow: x = scale ((1 - time) x0 + time eps).

    Every Gaussian path is a rectified flow up to a scale of x, with scale = alpha + sigma and time = sigma / scale. Its
    velocity is eps - x0. On rectified flow itself the scale is 1 and the time is sigma.
    """
    scale = node.alpha + node.sigma
    return scale, node.sigma / scale


def velocity(pair: Pair) -> Tensor:
    """Returns the velocity of the straight path, eps - x0."""
    return pair.eps - pair.x0


def advanced(x: Tensor, v: Tensor, t: Node, s: Node) -> Tensor:
    """Moves a sample from t to s along a velocity of the straight path; see ``straight``."""
    (scale, time), (next_scale, next_time) = straight(t), straight(s)
    return next_scale * (x / scale + (next_time - time) * v)


def path_ode(grid: Grid) -> PathODE:
    """Returns the ODE in the coordinate of the grid's path. A grid without a path does not count as rectified flow."""
    return PathODE(isinstance(grid.path, RectifiedFlow))
