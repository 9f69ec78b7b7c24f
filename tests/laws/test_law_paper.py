"""Law 5: every formula of the DDIM paper (Song et al. 2021, arXiv 2010.02502), by its number.

The paper's alpha_t is written ``bar`` here (alpha_bar of DDPM); each right-hand side is written out in it, from the
betas, without the library.
"""

import math
from itertools import pairwise

import pytest
import torch
from oracles import gaussian, mixture, noise_like
from refusals import refused
from torch.distributions import Normal, kl_divergence

import ddim
from ddim.core import process

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
BAR = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - BETAS, 0)])  # BAR[t], t = 0..T
PATH = ddim.ddpm_linear()
X0, X, Z = noise_like((5, 3), 1), noise_like((5, 3), 2), noise_like((5, 3), 3)
PAIRS = [(1000, 999), (900, 100), (500, 450), (20, 3), (2, 1)]  # (t, s), all with noise left at s
ETAS = [0.0, 0.3, 1.0]
pairs = pytest.mark.parametrize(("t", "s"), PAIRS)
etas = pytest.mark.parametrize("eta", ETAS)


def close(a, b, tolerance: float = 1e-12) -> bool:
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def sigma_eq16(eta: float, t: int, s: int) -> float:
    return eta * math.sqrt((1 - BAR[s]) / (1 - BAR[t])) * math.sqrt(1 - BAR[t] / BAR[s])


def one_step(solver: str, eps: torch.Tensor, t: int, s: int, z: torch.Tensor | None = None, **options) -> torch.Tensor:
    """A solver's step from t to s with a network that answers eps; followed by one more, so that it is not the last."""
    grid = ddim.make_grid(PATH, spacing=[t, s] if s else [t])
    made = ddim.make_solver(solver, options)

    def network(x, node):
        return ddim.to_pair("eps", eps, x, node)

    return made.read(made.step(network, made.init(X, grid), grid, 0, lambda like: z))


@pytest.mark.parametrize("t", [0, 1, 500, 1000])
def test_eq4_marginal(t):
    q = process.q_marginal(X0, PATH.node(t))
    assert close(q.mean, BAR[t].sqrt() * X0)
    assert close(q.std, (1 - BAR[t]).sqrt())


def test_eq5_l_gamma():
    times, gamma = [1, 400, 1000], [0.5, 2.0, 1.0]
    noise = [noise_like((5, 3), k) for k in times]

    def network(x, node):
        return x.sin() * node.sigma

    expected = sum(
        g * ((BAR[t].sqrt() * X0 + (1 - BAR[t]).sqrt() * e).sin() * (1 - BAR[t]).sqrt() - e).square().sum(1)
        for t, g, e in zip(times, gamma, noise, strict=True)
    )
    assert close(process.objective_l_gamma(network, X0, noise, [PATH.node(t) for t in times], gamma), expected)


@etas
@pairs
def test_eq7_posterior(t, s, eta):
    std = sigma_eq16(eta, t, s)
    q = process.q_posterior(X, X0, PATH.node(t), PATH.node(s), std)
    towards = (X - BAR[t].sqrt() * X0) / (1 - BAR[t]).sqrt()
    assert close(q.mean, BAR[s].sqrt() * X0 + (1 - BAR[s] - std**2).clamp(min=0).sqrt() * towards, 1e-9)
    assert q.std == std


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pairs
def test_eq8_bayes(t, s, eta):
    """q(x_t | x_s, x_0) q(x_s | x_0) = q(x_s | x_t, x_0) q(x_t | x_0) at random points."""
    node_t, node_s = PATH.node(t), PATH.node(s)
    std = sigma_eq16(eta, t, s)
    x_s = node_s.alpha * X0 + node_s.sigma * X
    x_t = node_t.alpha * X0 + node_t.sigma * (0.9 * X + 0.4 * Z)

    def log(q: process.Normal, x: torch.Tensor) -> torch.Tensor:
        return Normal(q.mean, q.std).log_prob(x)

    left = log(process.q_forward(x_s, X0, node_t, node_s, std), x_t) + log(process.q_marginal(X0, node_s), x_s)
    right = log(process.q_posterior(x_t, X0, node_t, node_s, std), x_s) + log(process.q_marginal(X0, node_t), x_t)
    assert torch.allclose(left, right, rtol=1e-6, atol=1e-6)


@pairs
def test_eq8_at_ddpms_variance_is_the_markov_kernel(t, s):
    # with the posterior variance of DDPM the forward process forgets x0: N(sqrt(bar_t / bar_s) x_s, 1 - bar_t / bar_s)
    q = process.q_forward(X, X0, PATH.node(t), PATH.node(s), sigma_eq16(1.0, t, s))
    assert close(q.mean, (BAR[t] / BAR[s]).sqrt() * X, 1e-9)
    assert close(q.std, (1 - BAR[t] / BAR[s]).sqrt(), 1e-9)


@pytest.mark.parametrize("t", [1, 500, 1000])
def test_eq9_predicted_x0(t):
    eps = X.cos()
    assert close(ddim.to_pair("eps", eps, X, PATH.node(t)).x0, (X - (1 - BAR[t]).sqrt() * eps) / BAR[t].sqrt(), 1e-9)


@pytest.mark.parametrize("t", [1000, 500, 2])
def test_eq10_generative_step_is_the_posterior_at_the_predicted_x0(t):
    eps, s = X.cos(), t - 1
    std = sigma_eq16(1.0, t, s)
    predicted = (X - (1 - BAR[t]).sqrt() * eps) / BAR[t].sqrt()
    q = process.q_posterior(X, predicted, PATH.node(t), PATH.node(s), std)
    assert close(one_step("ddim", eps, t, s, Z, eta=1.0), q.mean + q.std * Z, 1e-9)


def models() -> dict:
    oracle = gaussian(3)
    return {
        "zero": lambda x, node: torch.zeros_like(x),
        "identity": lambda x, node: x,
        "sine": lambda x, node: (3 * x).sin() * node.alpha,
        "oracle": lambda x, node: oracle(x, node).eps,
    }


def levels(eta: float) -> tuple[list[ddim.Node], list[float], list[torch.Tensor]]:
    """A short process t = 1..6, its standard deviations (any for the decoder's), and noise for each level."""
    times = [1, 5, 60, 300, 700, 1000]
    stds = [0.05, *(sigma_eq16(eta, t, s) for s, t in pairwise(times))]
    return [PATH.node(t) for t in times], stds, [noise_like((5, 3), 10 + t) for t in times]


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eq11_j_sigma_is_a_sum_of_kl_divergences_and_a_likelihood(eta):
    nodes, stds, noise = levels(eta)
    network = models()["sine"]
    total = torch.zeros(5, dtype=torch.float64)
    for i, (t, std, e) in enumerate(zip(nodes, stds, noise, strict=True)):
        x_t = t.alpha * X0 + t.sigma * e
        guess = (x_t - t.sigma * network(x_t, t)) / t.alpha
        if i == 0:
            total -= Normal(guess, std).log_prob(X0).sum(1)
        else:
            q, p = (process.q_posterior(x_t, x0, t, nodes[i - 1], std) for x0 in (X0, guess))
            total += kl_divergence(Normal(q.mean, std), Normal(p.mean, std)).sum(1)
    assert close(process.objective_j_sigma(network, X0, noise, nodes, stds), total, 1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_theorem_1_j_sigma_is_l_gamma_plus_a_constant(eta):
    nodes, stds, noise = levels(eta)
    gamma = process.theorem1_gamma(nodes, stds)
    l_gamma = {k: process.objective_l_gamma(m, X0, noise, nodes, gamma) for k, m in models().items()}
    gaps = [process.objective_j_sigma(m, X0, noise, nodes, stds) - l_gamma[k] for k, m in models().items()]
    scale = float(max(v.abs().max() for v in l_gamma.values()))
    for gap in gaps[1:]:
        assert torch.allclose(gap, gaps[0], rtol=0, atol=1e-12 * scale)
    assert not torch.allclose(l_gamma["zero"], l_gamma["sine"], rtol=0.01)  # the networks do differ


def test_theorem_1_needs_noise_at_every_level():
    nodes, stds, _ = levels(0.0)
    with refused("std", 0):
        process.theorem1_gamma(nodes, stds)


@etas
@pairs
def test_eq12_step(t, s, eta):
    eps, std = X.cos(), sigma_eq16(eta, t, s)
    predicted = (X - (1 - BAR[t]).sqrt() * eps) / BAR[t].sqrt()
    direction = (1 - BAR[s] - std**2).clamp(min=0).sqrt() * eps
    assert close(one_step("ddim", eps, t, s, Z, eta=eta), BAR[s].sqrt() * predicted + direction + std * Z, 1e-9)


@pytest.mark.parametrize("solver", [n for n in ddim.SOLVERS if ddim.make_solver(n).order == 1])
@pairs
def test_eq13_the_step_is_eulers_in_x_over_alpha(solver, t, s):
    eps = X.cos()

    def ratio(k: int) -> torch.Tensor:
        return ((1 - BAR[k]) / BAR[k]).sqrt()

    expected = X / BAR[t].sqrt() + (ratio(s) - ratio(t)) * eps
    assert close(one_step(solver, eps, t, s) / BAR[s].sqrt(), expected, 1e-9)


def test_eq14_the_ode_that_small_steps_follow():
    # d(x / alpha) = eps d(sigma / alpha): a central difference over DDIM's own step
    t, h, network = 500.0, 1e-3, mixture(3)
    solver = ddim.make_solver("ddim")
    grid = ddim.Grid((PATH.node(t), PATH.node(t - h)))
    x = solver.read(solver.step(network, {"x": X}, grid, 0, None))
    slope = (x / grid[1].alpha - X / grid[0].alpha) / (grid[1].ratio - grid[0].ratio)
    assert close(slope, network(X, grid[0]).eps, 1e-6)


@pytest.mark.parametrize("oracle", [gaussian(3), mixture(3)], ids=["gaussian", "mixture"])
def test_eq15_eps_is_the_score(oracle):
    # proposition 1: the ODE is the probability flow of Song et al. 2021b, with eps = -sigma grad log p
    node, x = PATH.node(400), X.clone().requires_grad_()
    a, s = node.alpha, node.sigma
    if hasattr(oracle, "means"):
        spread = (a**2 * oracle.scales**2 + s**2).sqrt()
        parts = Normal(a * oracle.means, spread[:, None]).log_prob(x[:, None]).sum(2) + oracle.weights.log()
        log_density = parts.logsumexp(1).sum()
    else:
        log_density = Normal(a * oracle.mean, oracle.spread(node)).log_prob(x).sum()
    (score,) = torch.autograd.grad(log_density, x)
    assert close(oracle(X, node).eps, -s * score, 1e-9)


@etas
@pairs
def test_eq16_std(t, s, eta):
    assert process.eta_std(eta, PATH.node(t), PATH.node(s)) == pytest.approx(sigma_eq16(eta, t, s), rel=1e-9)


@pairs
def test_sigma_hat(t, s):
    expected = math.sqrt(1 - BAR[t] / BAR[s])
    assert process.sigma_hat(PATH.node(t), PATH.node(s)) == pytest.approx(expected, rel=1e-9)


@pairs
def test_sigma_hat_keeps_the_direction_of_eta_one(t, s):
    eps, std, hat = X.cos(), sigma_eq16(1.0, t, s), math.sqrt(1 - BAR[t] / BAR[s])
    predicted = (X - (1 - BAR[t]).sqrt() * eps) / BAR[t].sqrt()
    direction = (1 - BAR[s] - std**2).clamp(min=0).sqrt() * eps
    assert close(one_step("ddpm", eps, t, s, Z), BAR[s].sqrt() * predicted + direction + hat * Z, 1e-9)


@pytest.mark.parametrize(("solver", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0})])
def test_the_last_step_draws_no_noise(solver, options):
    def no_noise(like):
        raise AssertionError("noise was drawn in the last step")

    made, grid = ddim.make_solver(solver, options), ddim.make_grid(PATH, spacing=[5])
    x = made.read(made.step(gaussian(3), {"x": X}, grid, 0, no_noise))
    assert close(x, gaussian(3)(X, grid[0]).x0)


@pytest.mark.parametrize("t", [2, 3, 500, 1000])
def test_eta_one_is_ddpms_posterior(t):
    """Eq. 6 and 7 of Ho et al. 2020 (arXiv 2006.11239), from the betas."""
    eps, beta, s = X.cos(), BETAS[t - 1], t - 1
    x0 = (X - (1 - BAR[t]).sqrt() * eps) / BAR[t].sqrt()
    mean = BAR[s].sqrt() * beta / (1 - BAR[t]) * x0 + (1 - beta).sqrt() * (1 - BAR[s]) / (1 - BAR[t]) * X
    variance = (1 - BAR[s]) / (1 - BAR[t]) * beta
    assert close(one_step("ddim", eps, t, s, torch.zeros_like(X), eta=1.0), mean, 1e-9)
    assert close(one_step("ddim", eps, t, s, Z, eta=1.0), mean + variance.sqrt() * Z, 1e-9)


@etas
def test_lemma_1_marginals_of_the_non_markovian_process(eta):
    """Composing the posteriors from T down gives q(x_s | x_0) of Eq. 4 at every s, for every eta."""
    times = [1000, 999, 700, 350, 349, 20, 2, 1]
    marginal = process.q_marginal(X0, PATH.node(times[0]))
    mean, variance = marginal.mean, marginal.std**2
    for t, s in pairwise(times):
        ends = PATH.node(t), PATH.node(s)
        std = process.eta_std(eta, *ends)
        at = process.q_posterior(mean, X0, *ends, std)
        slope = process.q_posterior(mean + 1, X0, *ends, std).mean - at.mean  # the mean is linear in x_t
        mean, variance = at.mean, float(slope.mean()) ** 2 * variance + std**2
        assert close(mean, BAR[s].sqrt() * X0, 1e-9)
        assert close(variance, 1 - BAR[s], 1e-9)


def test_a_std_that_leaves_no_room_is_refused():
    with refused("std", 1):
        process.q_posterior(X, X0, PATH.node(500), PATH.node(100), 1.0)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_an_eta_outside_zero_to_one_is_refused(eta):
    with refused("eta", eta):
        process.eta_std(eta, PATH.node(500), PATH.node(100))
