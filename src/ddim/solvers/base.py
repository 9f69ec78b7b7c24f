"""What solvers share: steps between two nodes from what a network said."""

import math

from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.path import Node
from ..core.prediction import Pair


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
