"""ReNoise: iterates each step towards noise, averages the last iterates, and can keep the predicted noise white."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .._utils.errors import InputError, UnknownName
from ..core.contracts import Inversion, InversionProblem, InversionResult, Noise, OnStep, State
from ..core.denoiser import Denoiser, corrected
from ..core.grid import Grid
from ..core.path import Node
from ..core.prediction import Pair
from ..core.solve import solve_back
from ..solvers.base import NoisySolver, PathODE, path_ode
from .edit_friendly import SAMPLERS

NOISE = ("matched", "independent")
PATCH = 4
"""The side of the patches whose mean and variance are compared, in elements of x."""
SMALLEST = 8
"""The levels of the autocorrelation end with the first whose shorter side is at most this long."""


@dataclass(frozen=True)
class ReNoise(Inversion):
    """Inverts a step by repeated noising, and averages the results (Garibi et al. 2024, arXiv 2403.14602).

    The inverse of the step from t to s needs the prediction at x_t, which is not known yet. The first prediction is
    made with x_s in its place, which gives plain DDIM inversion. Each iteration predicts again, at the last estimate of
    x_t, and takes the step from x_s along that prediction. The result is the mean of the last estimates; one
    estimate is an affine function of its prediction, so that this is the paper's step along the mean prediction. With
    ``average`` = 1 and no other option, the method is ``ddim`` with ``iterations`` + 1.

    A sampler that adds noise (``eta`` above 0, ``lcm`` and ``tcd``) is inverted for fixed noise maps, which are drawn
    with the seed. The code stores them as ``extras["noise"]``, and sampling adds the same. In the paper the maps are
    independent of the image. Then x_s lacks the noise that its step adds, and x grows from step to step: with eta = 1,
    20 steps and 9 iterations on ``emoji``, x_T has the standard deviation 24. By default a map is drawn for its x_s
    instead, from the distribution of the map given the noise in x_s, whose prediction is known from the step before:
    there the standard deviation is 1.0.

    ``correct`` changes the map of a step, so that the step ends at x_s: it becomes the remainder of the step's mean,
    divided by the standard deviation. The paper approaches this map by gradient descent. A step that adds no noise,
    such as the last, is not corrected.

    The defaults are those of the paper for Stable Diffusion and SDXL, but without ``regularize``. For a model that was
    distilled to a few steps, the paper's settings are 4 steps and::

        iterations=9 average=2 near=0.25 eta=1 regularize=4 correct=true

    ``regularize`` makes edits easier and the reconstruction worse. The predictions that are averaged are changed by so
    many gradient steps, each of two losses. The first is the Kullback-Leibler divergence of 4 x 4 patches of eps from
    those of a prediction for the image with fresh noise, summed over the patches. The second is the squared
    autocorrelation of each channel, at full size and at smaller sizes. The authors draw its shifts at random. Here they
    are spread evenly over half of the size, so that an image does not depend on its batch.

    Args:
        iterations: the number of predictions per step after the first; 0 is plain DDIM inversion.
        average: the number of the last estimates that are averaged, from 1 to ``iterations`` + 1.
        near: in [0, 1]: the part of the time axis next to the data in which the two numbers above are others: there
            are at most ``near_iterations`` iterations, and all estimates are averaged.
        near_iterations: the largest number of iterations in that part.
        eta: the amount of noise of the sampler, in [0, 1]. For ``tcd`` it is gamma, and ``lcm`` takes none.
        sampler: the sampler that is inverted: ``ddim``, or one for few-step models, ``lcm`` or ``tcd``.
        noise: how the noise maps are drawn: ``"matched"`` to the sample, or ``"independent"`` as in the paper.
        correct: whether the noise maps are corrected; it costs one more call per step.
        regularize: the number of gradient steps on each prediction; 0 changes none, and the paper has 4.
        lambda_ac, lambda_kl: the step sizes for the autocorrelation and for the divergence.
        rolls: the number of shifts of the autocorrelation in each of the two directions.

    Raises:
        InputError: an option is out of range or unknown.
    """

    iterations: int = 1
    average: int = 1
    near: float = 0.0
    near_iterations: int = 4
    eta: float = 0.0
    sampler: str = "ddim"
    noise: str = "matched"
    correct: bool = False
    regularize: int = 0
    lambda_ac: float = 20.0
    lambda_kl: float = 0.065
    rolls: int = 5

    name: ClassVar[str] = "renoise"
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 18.0
    paper: ClassVar[str] = "Garibi et al. 2024, arXiv 2403.14602"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("iterations", "near_iterations", "regularize"):
            if getattr(self, key) < 0:
                raise InputError(f"{getattr(self, key)} is negative; 0 does without.", parameter=key)
        if not 1 <= self.average <= self.iterations + 1:
            raise InputError(
                f"{self.average} of {self.iterations + 1} estimate{'s' * (self.iterations > 0)} cannot be averaged; "
                f"use 1 to {self.iterations + 1}.",
                parameter="average",
            )
        if not 0 <= self.near <= 1:
            raise InputError(f"{self.near:g} lies outside [0, 1]; the paper has 0.25.", parameter="near")
        if not 0 <= self.eta <= 1:
            raise InputError(f"{self.eta:g} lies outside [0, 1]; 0 is DDIM, 1 is DDPM.", parameter="eta")
        if self.sampler not in SAMPLERS:
            raise UnknownName("sampler", str(self.sampler), SAMPLERS, parameter="sampler")
        if self.sampler == "lcm" and self.eta:
            raise InputError(f"{self.eta:g} is no option of the sampler 'lcm'; leave it out.", parameter="eta")
        if self.noise not in NOISE:
            raise UnknownName("noise", str(self.noise), NOISE)
        if self.correct and not self.solver().stochastic:
            raise InputError(
                "it changes noise maps, and this sampler adds no noise; use eta above 0, or leave it out.",
                parameter="correct",
            )
        for key in ("lambda_ac", "lambda_kl"):
            if not 0 <= getattr(self, key) < math.inf:
                raise InputError(f"{getattr(self, key):g} is no step size; use 0 or more.", parameter=key)
        if self.rolls < 1:
            raise InputError(f"{self.rolls} compares nothing; use 1 or more, the paper has 5.", parameter="rolls")

    @property
    def nfe(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The largest number of network calls per step: iterations + 1, and one each to correct and to compare."""
        return self.iterations + 1 + self.correct + self._compares

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The order of the round trip's error, that of the first estimate which is averaged; 0 with ``regularize``."""
        return 0 if self.regularize else 1 if self.near else self.iterations + 2 - self.average

    @property
    def _compares(self) -> bool:
        return bool(self.regularize and self.lambda_kl)

    def solver(self) -> NoisySolver:
        """Returns the sampler with its eta."""
        return SAMPLERS[self.sampler](self.eta)

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Returns the sample at the noisy end; with a sampler that adds noise, also ``extras["noise"]``, [N, S, ...].

        Raises:
            InputError: the problem has no source of noise and the options need one, ``regularize`` is set and the
                images have no height and width, or the first step of the sampler does not depend on where it begins.
            NotFinite: the sample contains NaN or infinity after a step.
        """
        solver, ode = self.solver(), path_ode(grid)
        noise = problem.noise
        if noise is None and (solver.stochastic or self._compares):
            raise InputError(f"{self.name!r} draws noise with these options; give a seed.", parameter="seed")
        if self.regularize and x0.ndim != 4:
            raise InputError(
                f"{self.regularize} works on images with a height and a width, and x has the shape "
                f"{tuple(x0.shape)}; use 0.",
                parameter="regularize",
            )
        steps = _Steps(self, solver, ode, x0, noise)
        denoise = problem.denoiser(problem.inversion_guidance)
        state = solve_back(denoise, steps, {"x": x0}, grid, on_step=on_step)
        extras = {"noise": torch.stack(steps.maps[::-1], dim=1)} if solver.stochastic else {}
        return InversionResult(state, grid, problem.prompts, extras)


class _Steps:
    """The steps of one run towards the noise, with the noise maps that they fix; a ``BackwardSolver``."""

    def __init__(self, method: ReNoise, solver: NoisySolver, ode: PathODE, x0: Tensor, noise: Noise | None) -> None:
        self.method, self.solver, self.ode, self.x0, self.noise = method, solver, ode, x0, noise
        self.maps: list[Tensor] = []  # from the data on
        self.eps: Tensor | None = None  # the last prediction

    def first(self, grid: Grid) -> int:
        """Returns 0: the steps reach the noisy end of the grid."""
        return 0

    def read(self, state: State) -> Tensor:
        """Returns the sample x."""
        return state["x"]

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """Returns the state at ``grid[i]`` from the one at ``grid[i + 1]``."""
        x, method = state["x"], self.method
        std = self._std(x, grid, i)
        z = self._drawn(x, grid[i + 1], std) if self.solver.stochastic else None
        plain = corrected(denoise, self._remember)
        calm = corrected(self._regularized(denoise, x, grid[i]), self._remember)
        count, first = method.iterations, method.iterations + 1 - method.average
        if grid[i].t < method.near * _t_max(grid):
            count, first = min(count, method.near_iterations), 0
        guess, total = x, torch.zeros_like(x)
        for k in range(count + 1):
            mean, _ = self.solver.moments(calm if k >= first else plain, guess, grid, i)
            end = mean if z is None else mean + std * z
            # The mean is affine in the guess and in the prediction; this leaves the prediction's part alone.
            guess = guess + (x - end) / self._gain(grid[i], grid[i + 1], std)
            total = total + guess if k >= first else total
        found = total / (count + 1 - first)
        if z is not None:
            self.maps.append(self._corrected(denoise, found, x, grid, i) if method.correct and std > 0 else z)
        return {"x": found}

    def _std(self, x: Tensor, grid: Grid, i: int) -> float:
        """Returns the standard deviation of the noise of step i, which depends on no prediction."""
        return self.solver.moments(lambda x, _: Pair(x, x), x, grid, i)[1]

    def _remember(self, pair: Pair, x: Tensor, node: Node) -> Pair:
        self.eps = pair.eps
        return pair

    def _drawn(self, x: Tensor, s: Node, std: float) -> Tensor:
        """Returns the noise map of the step that ends at x, at the node s."""
        assert self.noise is not None
        new = self.noise(x)
        if std == 0:
            return torch.zeros_like(x)
        if self.eps is None or self.method.noise == "independent":
            return new
        # The noise sigma_s eps of x is the sum of two independent parts, of which std z is one.
        return std / s.sigma * self.eps + math.sqrt(max(1 - (std / s.sigma) ** 2, 0.0)) * new

    def _corrected(self, denoise: Denoiser, found: Tensor, x: Tensor, grid: Grid, i: int) -> Tensor:
        """Returns the noise map with which step i leads from ``found`` to x."""
        mean, std = self.solver.moments(denoise, found, grid, i)
        return (x - mean) / std

    def _gain(self, t: Node, s: Node, std: float) -> float:
        """Returns the derivative of the step's mean with respect to x, for a fixed slope of the path's ODE.

        The mean is a x0 + b eps with a = alpha_s and b^2 = sigma_s^2 - std^2, for all samplers here.
        """
        along = math.sqrt(max(s.sigma**2 - std**2, 0.0))
        if self.ode.straight:
            return s.alpha + along
        if t.alpha > 0:
            return s.alpha / t.alpha
        if along > 0:  # without signal at t, eps is x / sigma, and x0 takes the place of the slope
            return along / t.sigma
        raise InputError(
            f"the first step of this grid begins at t = {t.t:g}, where no signal is left, and ends with new noise, "
            "so that any sample could be its begin; use eta below 1, or a grid that begins later.",
            parameter="eta",
        )

    def _regularized(self, denoise: Denoiser, x: Tensor, node: Node) -> Denoiser:
        """Returns a denoiser whose eps at this node is regularized."""
        method = self.method
        if not method.regularize or node.alpha == 0:  # without signal, x alone determines eps
            return denoise
        reference = None
        if method.lambda_kl:
            assert self.noise is not None
            reference = denoise(node.alpha * self.x0 + node.sigma * self.noise(x), node).eps

        def change(pair: Pair, at: Tensor, node: Node) -> Pair:
            eps = regularized(pair.eps, reference, method.regularize, method.lambda_ac, method.lambda_kl, method.rolls)
            return Pair((at - node.sigma * eps) / node.alpha, eps)

        return corrected(denoise, change)


def _t_max(grid: Grid) -> float:
    """Returns the time with the most noise, of the path or, without a path, of the grid."""
    return grid[0].t if grid.path is None else grid.path.t_max


def regularized(
    eps: Tensor, reference: Tensor | None, steps: int, lambda_ac: float, lambda_kl: float, rolls: int
) -> Tensor:
    """Makes predicted noise more like white noise, by gradient descent on two losses in turn.

    Args:
        eps: the predicted noise, [N, C, H, W].
        reference: a prediction for an image that white noise was added to, in the shape of eps; None leaves out the
            divergence.
        steps: the number of gradient steps on each of the losses.
        lambda_ac, lambda_kl: the step sizes for ``autocorrelation`` and ``patch_divergence``.
        rolls: see ``autocorrelation``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            if reference is not None and lambda_kl:
                leaf = eps.detach().clone().requires_grad_()
                (slope,) = torch.autograd.grad(patch_divergence(leaf, reference.detach().clone()).sum(), leaf)
                eps = eps - lambda_kl * slope
            if lambda_ac:
                leaf = eps.detach().clone().requires_grad_()
                (slope,) = torch.autograd.grad(autocorrelation(leaf, rolls).sum(), leaf)
                eps = eps - lambda_ac * slope
    return eps.detach()


def patch_divergence(eps: Tensor, reference: Tensor) -> Tensor:
    """Returns the sum over patches of the KL divergence of normal distributions, for each sample, [N].

    A patch has 4 x 4 elements of one channel, fewer at an edge that 4 does not divide. Its distribution has the
    mean and the variance of its elements, the latter at least 1e-6.

    Args:
        eps, reference: two tensors [N, C, H, W].
    """

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, square = (avg_pool2d(each, PATCH, ceil_mode=True, count_include_pad=False) for each in (x, x.square()))
        return mean, (square - mean.square()).clamp(min=1e-6)

    (m, v), (n, w) = moments(eps), moments(reference)
    return 0.5 * ((v + (m - n).square()) / w - 1 - (v / w).log()).flatten(1).sum(1)


def autocorrelation(eps: Tensor, rolls: int) -> Tensor:
    """Returns the sum of squared autocorrelations of each sample, [N].

    An autocorrelation is the mean over a channel of the product of eps with itself, shifted in one direction around
    the edge. Further levels are the means of 2 x 2 elements of the level before. The shifts of a side of n elements
    are 1, 1 + n / (2 rolls), ..., rounded down.

    Source: Parmar et al. 2023 (pix2pix-zero), arXiv 2302.03027, section 3.2.

    Args:
        eps: [N, C, H, W].
        rolls: the number of shifts in each direction, at least 1.
    """
    loss, level = eps.new_zeros(len(eps)), eps
    while True:
        for dim in (2, 3):
            for k in range(rolls):
                shift = 1 + k * (level.shape[dim] // 2) // rolls
                product = (level * level.roll(shift, dim)).mean((2, 3))
                loss = loss + product.square().sum(1) / rolls
        if min(level.shape[2:]) <= SMALLEST:
            return loss
        level = avg_pool2d(level, 2)
