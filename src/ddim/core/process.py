"""The forward processes of DDIM, and the objectives that train on them (Song et al. 2021, arXiv 2010.02502).

Closed forms only: what the solvers do is checked against these.
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
    """q(x_t | x_0), Eq. 4: mean alpha x0, standard deviation sigma."""
    return Normal(node.alpha * x0, node.sigma)


def eta_std(eta: float, t: Node, s: Node) -> float:
    """The noise a step from t to the less noisy s injects, Eq. 16: eta = 1 is DDPM's posterior.

    Args:
        eta: in [0, 1].
        t, s: nodes with s less noisy than t.

    Raises:
        InputError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise InputError(f"{eta:g} lies outside [0, 1]; 0 is DDIM, 1 is DDPM.", parameter="eta")
    if eta == 0 or s.sigma == 0:
        return 0.0
    return eta * s.sigma * math.sqrt(max(1 - (t.alpha * s.sigma / (s.alpha * t.sigma)) ** 2, 0.0))


def sigma_hat(t: Node, s: Node) -> float:
    """DDPM's larger standard deviation, section 5: sqrt(1 - alpha_bar_t / alpha_bar_s) on a VP path.

    In general the noise that the forward kernel from s to t adds: sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2).
    """
    return math.sqrt(max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0.0))


def q_posterior(x_t: Tensor, x0: Tensor, t: Node, s: Node, std: float) -> Normal:
    """q_sigma(x_s | x_t, x_0), Eq. 7: the non-Markovian step from t to the less noisy s.

    Raises:
        InputError: std is larger than sigma_s, which leaves no room for the direction to x_t.
    """
    if std > s.sigma * (1 + 1e-12):
        raise InputError(f"{std:g} exceeds sigma = {s.sigma:g} of the node that it steps to.", parameter="std")
    eps = (x_t - t.alpha * x0) / t.sigma
    return Normal(s.alpha * x0 + math.sqrt(max(s.sigma**2 - std**2, 0.0)) * eps, std)


def q_forward(x_s: Tensor, x0: Tensor, t: Node, s: Node, std: float) -> Normal:
    """q_sigma(x_t | x_s, x_0), Eq. 8: Bayes' rule on the posterior and the marginals; not Markovian, it sees x0.

    With g = sqrt(sigma_s^2 - std^2) / sigma_t the posterior's mean is linear in x_t with slope g, so the precision is
    g^2 / std^2 + 1 / sigma_t^2. std = 0 is the deterministic limit.
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
    """L_gamma, Eq. 5: sum over t of gamma_t |eps_theta(x_t) - eps|^2, a value a sample, shape [N].

    Args:
        eps_model: ``(x_t, node) -> eps``, shapes of x0.
        x0: data, [N, ...].
        noise: one tensor a node, shape of x0: the eps that makes x_t.
        nodes: the noise levels t = 1..T, least noisy first.
        gamma: one weight a node; all ones is the loss that DDPM trains with.
    """
    total = x0.new_zeros(len(x0))
    for eps, node, weight in zip(noise, nodes, gamma, strict=True):
        error = eps_model(node.alpha * x0 + node.sigma * eps, node) - eps
        total = total + weight * error.square().flatten(1).sum(1)
    return total


def theorem1_gamma(nodes: Sequence[Node], stds: Sequence[float]) -> list[float]:
    """The weights with which J_sigma = L_gamma + C (Theorem 1), for std > 0 at every level.

    The KL term at t is the squared distance of two means over 2 std^2; both means are affine in x0, and
    x0 - f_theta = -(sigma_t / alpha_t)(eps - eps_theta). At t = 1 the term is the decoder's log-likelihood.
    The proof in appendix B writes the x0 distance with slope 1; the slope is kept here.
    """
    weights: list[float] = []
    for i, (node, std) in enumerate(zip(nodes, stds, strict=True)):
        if std <= 0:
            raise InputError(
                "Theorem 1 needs std > 0 at every level: J_sigma has no density otherwise.", parameter="std"
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
    """J_sigma, Eq. 11, a value a sample, shape [N]: the variational bound of the generative process p_theta.

    The expectation over x_t is taken at the given noise; the KL between two normals of equal std is exact. Terms that
    no theta changes (the prior's) are left out: they are part of the C of Theorem 1.

    Args:
        eps_model, x0, noise: as for ``objective_l_gamma``.
        nodes: t = 1..T, least noisy first.
        stds: std > 0 a level; ``stds[0]`` is the decoder's, p(x_0 | x_1) = N(f_theta(x_1), stds[0]^2).
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
