"""Distributions whose exact eps is known: the truth that every method is measured against.

Both are Denoisers, for any path and any shape of sample: x0 = E[x_0 | x_t] and eps = E[eps | x_t] in closed form.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim import Grid, Guidance, Node, Pair, RectifiedFlow, ddpm_linear
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.core.denoiser import PLAIN, Call, ask_network
from ddim.core.guidance import combine
from ddim.core.path import GaussianPath
from ddim.core.prediction import from_pair
from ddim.core.schedule import Schedule, StaticShift


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, diag(scale^2)); mean and scale have the shape of one sample."""

    mean: Tensor
    scale: Tensor

    def __call__(self, x: Tensor, node: Node) -> Pair:
        a, s = node.alpha, node.sigma
        mean, scale = self.mean.to(x.dtype), self.scale.to(x.dtype)
        rest = (x - a * mean) / (a**2 * scale**2 + s**2)
        return Pair(mean + a * scale**2 * rest, s * rest)

    def endpoint(self, x: Tensor, t: Node, s: Node) -> Tensor:
        """Where the probability-flow ODE takes x from t to s: (x - alpha mean) keeps its number of deviations."""
        return s.alpha * self.mean + self.spread(s) / self.spread(t) * (x - t.alpha * self.mean)

    flow_endpoint = endpoint

    def spread(self, node: Node) -> Tensor:
        """The standard deviation of x at a node, per element."""
        return (node.alpha**2 * self.scale**2 + node.sigma**2).sqrt()

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """Data, [count, ...]."""
        g = torch.Generator().manual_seed(seed)
        return self.mean + self.scale * torch.randn(count, *self.mean.shape, generator=g, dtype=self.mean.dtype)


@dataclass(frozen=True)
class Mixture:
    """Data from several isotropic Gaussians: weights [K], means [K, ...], scales [K]."""

    weights: Tensor
    means: Tensor
    scales: Tensor

    def __call__(self, x: Tensor, node: Node) -> Pair:
        a, s = node.alpha, node.sigma
        per = (slice(None), *[None] * (x.ndim - 1))  # [K] against [N, K, ...]
        means, scales = self.means.to(x.dtype), self.scales.to(x.dtype)
        variance = a**2 * scales**2 + s**2
        off = x.unsqueeze(1) - a * means
        dims = x[0].numel()
        fit = self.weights.to(x.dtype).log() - off.square().flatten(2).sum(2) / (2 * variance)
        posterior = torch.softmax(fit - dims / 2 * variance.log(), dim=1)
        rest = (posterior[(..., *per[1:])] * off / variance[per]).sum(1)
        eps = s * rest
        if s == 0:  # noise-free: the sample is its own x0
            return Pair(x / a, eps)
        x0 = (posterior[(..., *per[1:])] * (means + (a * scales**2 / variance)[per] * off)).sum(1)
        return Pair(x0, eps)

    def endpoint(self, x: Tensor, t: Node, s: Node, steps: int = 400) -> Tensor:
        """The probability-flow ODE from t to s (both with signal and noise) by Runge-Kutta's method of order 4.

        With u = x / alpha and r = sigma / alpha the ODE is du / d(log r) = r eps (Eq. 14 of the DDIM paper).
        """

        def slope(u: Tensor, log_r: float) -> Tensor:
            r = math.exp(log_r)
            return r * self(u, Node(r, 1.0, r)).eps

        begin, end = math.log(t.ratio), math.log(s.ratio)
        u, h = x / t.alpha, (end - begin) / steps
        for k in range(steps):
            at = begin + k * h
            k1 = slope(u, at)
            k2 = slope(u + h / 2 * k1, at + h / 2)
            k3 = slope(u + h / 2 * k2, at + h / 2)
            k4 = slope(u + h * k3, at + h)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return s.alpha * u

    def flow_endpoint(self, x: Tensor, t: Node, s: Node, steps: int = 400) -> Tensor:
        """The same on rectified flow, where both ends may be pure noise or data: dx / dsigma = eps - x0."""

        def slope(x: Tensor, sigma: float) -> Tensor:
            pair = self(x, Node(sigma, 1 - sigma, sigma))
            return pair.eps - pair.x0

        h = (s.sigma - t.sigma) / steps
        for k in range(steps):
            at = t.sigma + k * h
            k1 = slope(x, at)
            k2 = slope(x + h / 2 * k1, at + h / 2)
            k3 = slope(x + h / 2 * k2, at + h / 2)
            k4 = slope(x + h * k3, min(max(at + h, 0.0), 1.0))
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """Data, [count, ...]."""
        g = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=g)
        noise = torch.randn(count, *self.means.shape[1:], generator=g, dtype=self.means.dtype)
        return self.means[which] + self.scales[which].view(-1, *[1] * (noise.ndim - 1)) * noise


EPS = Schedule(ddpm_linear(), "eps")
"""Of a network that answers eps; of its path only the largest t is asked."""
FLOW = Schedule(RectifiedFlow(), "flow", shift=StaticShift(3.0))
"""Of a network that answers the velocity, as Stable Diffusion 3 does."""


@dataclass(frozen=True)
class Conditional:
    """A ``Network`` that answers what its schedule says, for data of ``base`` moved by the text, [N, L, D]: by its mean
    over the tokens times ``lead``, [D, ...].

    Under guidance of weight w a Gaussian's exact eps is that of data moved by uncond + w (cond - uncond): it is linear
    in the mean.
    """

    base: Gaussian | Mixture
    lead: Tensor
    schedule: Schedule = EPS

    def move(self, text: Tensor) -> Tensor:
        """How far the text moves the data, [N, ...]."""
        return torch.tensordot(text.mean(1), self.lead.to(text.dtype), dims=1)

    def pair(self, x: Tensor, node: Node, cond: Conditioning) -> Pair:
        """The exact pair under a condition."""
        by = self.move(cond.tensors["text"].to(x.dtype))
        pair = self.base(x - node.alpha * by, node)
        return Pair(pair.x0 + by, pair.eps)

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """The exact output; what ``ask`` asks, for a test to watch."""
        return from_pair(self.schedule.prediction, self.pair(x, node, cond), node.alpha, node.sigma)

    def ask(self, x: Tensor, node: Node, /, *conditionings: Conditioning, call: Call = PLAIN) -> Sequence[Tensor]:
        """As every model's."""
        return ask_network(lambda rows, cond, told: self.forward(rows, node, cond, told), x, conditionings, call)

    def combine(self, cond: Tensor, uncond: Tensor, guidance: Guidance, node: Node) -> Tensor:
        """As most models'."""
        return combine(cond, uncond, guidance)


def prompts(text: Tensor, opposite: Tensor | None = None) -> PromptConditioning:
    """Both branches of guidance from embedded text [N, L, D]."""
    uncond = None if opposite is None else Conditioning({"text": opposite})
    return PromptConditioning(Conditioning({"text": text}), uncond)


def conditional(base: Gaussian | Mixture, words: int = 6, schedule: Schedule = EPS) -> Conditional:
    """Embeddings of this many numbers move every element of ``base`` by about half a deviation."""
    shape = base.mean.shape if isinstance(base, Gaussian) else base.means.shape[1:]
    lead = torch.randn(words, *shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return Conditional(base, 0.5 * lead, schedule)


def gaussian(*shape: int) -> Gaussian:
    """A Gaussian of this sample shape, with another mean and scale in every element."""
    g = torch.Generator().manual_seed(1)
    mean = torch.randn(*shape, generator=g, dtype=torch.float64)
    return Gaussian(mean, 0.3 + torch.rand(*shape, generator=g, dtype=torch.float64))


def mixture(*shape: int) -> Mixture:
    """Three overlapping Gaussians of this sample shape, so that the flow is far from linear and yet smooth."""
    g = torch.Generator().manual_seed(2)
    means = 0.8 * torch.randn(3, *shape, generator=g, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return Mixture(weights, means, torch.tensor([0.4, 0.6, 0.5], dtype=torch.float64))


def noise_like(shape: tuple[int, ...], seed: int = 3) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Arc(GaussianPath):
    """alpha = cos t, sigma = sin t: variance-preserving, and smooth in t."""

    t_max, levels, train_levels, discrete = math.pi / 2, 1000, 1000, False

    def alpha(self, t: Tensor) -> Tensor:
        """cos t."""
        return torch.as_tensor(t).to(torch.float64).cos()

    def sigma(self, t: Tensor) -> Tensor:
        """sin t."""
        return torch.as_tensor(t).to(torch.float64).sin()

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The angle whose tangent is sigma / alpha."""
        return torch.as_tensor(log_snr).to(torch.float64).div(-2).exp().atan()

    def timestep(self, t: float) -> float:
        """t itself."""
        return t


def arc(steps: int, start: float = 1.35, end: float = 0.35) -> Grid:
    """A smooth variance-preserving grid: alpha = cos t, sigma = sin t, even in t, ending at finite noise.

    Orders are fitted here, not on a table's grid: rounding to a table's levels makes the steps uneven in a way that
    does not shrink with them, and at sigma = 0 the log-SNR is infinite, where several methods drop to first order for
    one step. On a smooth map of even steps the textbook expansion of the error holds. The grid knows its path, for
    solvers that ask between two nodes.
    """
    times = torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()
    return Grid(tuple(Node(t, math.cos(t), math.sin(t)) for t in times), "arc", Arc())


def straight(steps: int, start: float = 0.9, end: float = 0.2) -> Grid:
    """The same on the path of rectified flow: alpha = 1 - t, sigma = t."""
    return _flow(torch.linspace(start, end, steps + 1, dtype=torch.float64))


def shifted(steps: int, start: float = 0.9, end: float = 0.2) -> Grid:
    """The same with sigma shifted by the factor 3, as in Stable Diffusion 3; it is smooth in the number of the node."""
    even = torch.linspace(start / (3 - 2 * start), end / (3 - 2 * end), steps + 1, dtype=torch.float64)
    return _flow(3 * even / (1 + 2 * even))


def whole(steps: int) -> Grid:
    """From pure noise to the data on rectified flow."""
    return straight(steps, 1.0, 0.0)


def whole_shifted(steps: int) -> Grid:
    """The same with sigma shifted by the factor 3."""
    return shifted(steps, 1.0, 0.0)


def _flow(sigmas: Tensor) -> Grid:
    return Grid(tuple(Node(t, 1 - t, t) for t in sigmas.tolist()), "straight", RectifiedFlow())


def fitted_order(steps: list[int], errors: list[float]) -> float:
    """Minus the slope of log error against log steps, by least squares."""
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())
