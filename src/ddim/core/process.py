"""The forward processes and training objectives of DDIM in closed form (Song et al. 2021, arXiv 2010.02502).

The equation numbers are those of the paper. The tests compare the solvers with these formulas.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from .._utils.errors import InputError
from .path import Node


class Normal(NamedTuple):
    """A normal distribution with one standard deviation for every element."""

    mean: Tensor
    std: float


def q_marginal(x0: Tensor, node: Node) -> Normal:
    """Returns q(x_t | x_0), Eq. 4: the mean is alpha x0 and the standard deviation is sigma."""
    return Normal(node.alpha * x0, node.sigma)


def eta_std(eta: float, t: Node, s: Node) -> float:
    """Returns the standard deviation of the noise that a step from t to s adds, Eq. 16.

    Args:
        eta: in [0, 1]; 0 adds no noise (DDIM), 1 gives the posterior variance of DDPM.
        t, s: two nodes, of which s has less noise.

    Raises:
        InputError: ``eta`` lies outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise InputError(f"{eta:g} lies outside [0, 1]; 0 is DDIM, 1 is DDPM.", parameter="eta")
    if eta == 0 or s.sigma == 0:
        return 0.0
    return eta * s.sigma * math.sqrt(max(1 - (t.alpha * s.sigma / (s.alpha * t.sigma)) ** 2, 0.0))


def sigma_hat(t: Node, s: Node) -> float:
    """Returns the larger of DDPM's two standard deviations: sqrt(1 - alpha_bar_t / alpha_bar_s) on a VP path.

    On any path it is the standard deviation of the noise that the forward process adds from s to t:
    sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2). Source: section 5 of the paper.
    """
    return math.sqrt(max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0.0))


def q_posterior(x_t: Tensor, x0: Tensor, t: Node, s: Node, std: float) -> Normal:
    """Returns q_sigma(x_s | x_t, x_0), Eq. 7: the posterior at the node s, which has less noise than t.

    Raises:
        InputError: ``std`` exceeds sigma_s, so that the coefficient sqrt(sigma_s^2 - std^2) does not exist.
    """
    if std > s.sigma * (1 + 1e-12):
        raise InputError(f"{std:g} exceeds sigma = {s.sigma:g} of the node where the step ends.", parameter="std")
    eps = (x_t - t.alpha * x0) / t.sigma
    return Normal(s.alpha * x0 + math.sqrt(max(s.sigma**2 - std**2, 0.0)) * eps, std)


def q_forward(x_s: Tensor, x0: Tensor, t: Node, s: Node, std: float) -> Normal:
    """Returns q_sigma(x_t | x_s, x_0), Eq. 8: the forward step from s to t, by Bayes' rule.

    The step depends on x0, so that the forward process is not Markovian. The mean of the posterior (Eq. 7) is linear in
    x_t with the slope g = sqrt(sigma_s^2 - std^2) / sigma_t, so that the precision is g^2 / std^2 + 1 / sigma_t^2.
    std = 0 is the deterministic limit.
    """
    slope = math.sqrt(max(s.sigma**2 - std**2, 0.0)) / t.sigma
    # Cov(x_t, x_s | x0) = slope sigma_t^2 and Var(x_s | x0) = sigma_s^2: the Gaussian regression of x_t on x_s.
    gain = slope * t.sigma**2 / s.sigma**2
    variance = t.sigma**2 - gain * slope * t.sigma**2
    return Normal(t.alpha * x0 + gain * (x_s - s.alpha * x0), math.sqrt(max(variance, 0.0)))


EpsModel = Callable[[Tensor, Node], Tensor]


def objective_l_gamma(
    eps_model: EpsModel, x0: Tensor, noise: Sequence[Tensor], nodes: Sequence[Node], gamma: Sequence[float]
) -> Tensor:
    """Returns L_gamma, Eq. 5: the sum over t of gamma_t |eps_theta(x_t) - eps|^2 for each sample, [N].

    Args:
        eps_model: ``(x_t, node) -> eps``, in the shape of x0.
        x0: the data, [N, ...].
        noise: for each node the eps of x_t, in the shape of x0.
        nodes: the noise levels t = 1..T, in the order of increasing noise.
        gamma: the weight of each node; all ones is the training loss of DDPM.
    """
    total = x0.new_zeros(len(x0))
    for eps, node, weight in zip(noise, nodes, gamma, strict=True):
        error = eps_model(node.alpha * x0 + node.sigma * eps, node) - eps
        total = total + weight * error.square().flatten(1).sum(1)
    return total


def theorem1_gamma(nodes: Sequence[Node], stds: Sequence[float]) -> list[float]:
    """Returns the weights gamma with which J_sigma = L_gamma + C (Theorem 1).

    The KL term at t is the squared distance of two means, divided by 2 std^2. Both means are affine in x0, and
    x0 - f_theta = -(sigma_t / alpha_t)(eps - eps_theta). At t = 1 the term is the log-likelihood of the decoder.
    The proof in appendix B omits the slope of the means in x0; it is included here.

    Args:
        nodes: the noise levels t = 1..T, in the order of increasing noise.
        stds: the standard deviation at each level, above 0.

    Raises:
        InputError: a standard deviation is not above 0.
    """
    weights: list[float] = []
    for i, (node, std) in enumerate(zip(nodes, stds, strict=True)):
        if std <= 0:
            raise InputError(
                "Theorem 1 needs std > 0 at every level, because J_sigma is not finite otherwise.", parameter="std"
            )
        slope = 1.0
        if i > 0:
            s = nodes[i - 1]
            slope = s.alpha - math.sqrt(max(s.sigma**2 - std**2, 0.0)) * node.alpha / node.sigma
        weights.append((slope * node.sigma / node.alpha) ** 2 / (2 * std**2))
    return weights


def objective_j_sigma(
    eps_model: EpsModel, x0: Tensor, noise: Sequence[Tensor], nodes: Sequence[Node], stds: Sequence[float]
) -> Tensor:
    """Returns J_sigma, Eq. 11, for each sample, [N]: the variational bound of the generative process p_theta.

    The expectation over x_t is replaced by its value at ``noise``. The KL divergence of two normal distributions of
    equal standard deviation is exact. Terms that do not depend on theta (the prior) are omitted; they belong to the
    constant C of Theorem 1.

    Args:
        eps_model, x0, noise: see ``objective_l_gamma``.
        nodes: the noise levels t = 1..T, in the order of increasing noise.
        stds: the standard deviation at each level, above 0. ``stds[0]`` is that of the decoder,
            p(x_0 | x_1) = N(f_theta(x_1), stds[0]^2).
    """
    dims = x0[0].numel()
    total = x0.new_zeros(len(x0))
    for i, (eps, t, std) in enumerate(zip(noise, nodes, stds, strict=True)):
        x_t = t.alpha * x0 + t.sigma * eps
        guess = (x_t - t.sigma * eps_model(x_t, t)) / t.alpha  # f_theta, Eq. 9
        if i == 0:
            nll = (x0 - guess).square().flatten(1).sum(1) / (2 * std**2)
            total = total + nll + dims * math.log(std * math.sqrt(2 * math.pi))
        else:
            truth = q_posterior(x_t, x0, t, nodes[i - 1], std).mean
            model = q_posterior(x_t, guess, t, nodes[i - 1], std).mean
            total = total + (truth - model).square().flatten(1).sum(1) / (2 * std**2)
    return total
