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
        return pair.eps - pair.x0 if self.straight else pair.eps

    def step(self, x: Tensor, slope: Tensor, t: Node, s: Node) -> Tensor:
        """Returns the step of x from t to s along a known slope, which may be towards the data or towards the noise.

        The formula is that of Euler's method for u. On paths other than rectified flow it is ``shift``.
        """
        ratio = self.weight(s) / self.weight(t)
        return ratio * x + (s.sigma - ratio * t.sigma) * slope

    def unstep(self, pair: Pair, x: Tensor, t: Node, s: Node) -> Tensor:
        """Returns the sample at t from which a DDIM step with this pair ends at x, at s.

        Args:
            pair: x0 and eps of the sample at t, or of a guess of it.
            x: the sample at s, [N, ...].
            t, s: the nodes where the step begins and ends; t has more noise.
        """
        if self.weight(t) == 0 and s.sigma > 0:
            # Without signal at t, eps is the guess itself and would repeat it; x0 says where the step leads.
            return t.sigma / s.sigma * (x - s.alpha * pair.x0)
        return self.step(x, self.slope(pair), s, t)

    def first(self, grid: Grid) -> int:
        """Returns the first step of which both ends have a finite r: 0 or 1."""
        return 0 if math.isfinite(self.time(grid[0])) else 1


def path_ode(grid: Grid) -> PathODE:
    """Returns the ODE in the coordinate of the grid's path. A grid without a path does not count as rectified flow."""
    return PathODE(isinstance(grid.path, RectifiedFlow))


def implicit_step(denoise: Denoiser, x: Tensor, grid: Grid, i: int, iterations: int) -> Tensor:
    """Finds the sample at ``grid[i]`` whose DDIM step ends at x, by a fixed-point iteration that starts from x.

    Args:
        denoise: the model. It is called at ``grid[i]`` only; the first iterate is plain DDIM inversion with the
            timestep of that node.
        x: the sample at ``grid[i + 1]``, [N, ...].
        grid: the grid of S + 1 nodes.
        i: the step.
        iterations: the number of iterations and network calls, at least 1.
    """
    ode, t, s = path_ode(grid), grid[i], grid[i + 1]
    guess = x
    for _ in range(iterations):
        guess = ode.unstep(denoise(guess, t), x, t, s)
    return guess
