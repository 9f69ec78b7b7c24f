"""The one contract every model is reduced to: ``denoise(x, node, cond) -> Pair(x0, eps)``."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from .path import GaussianPath, Node
from .prediction import Correction, Pair, to_pair

Cond = Mapping[str, Any]


class Denoiser(Protocol):
    """Anything that tells x apart into x0 and eps.

    ``x`` has shape [N, ...]; ``node.t`` is what the network is told, ``node.alpha`` and ``node.sigma`` say where x is.
    The pair must explain x: ``node.alpha * x0 + node.sigma * eps == x``.
    """

    def __call__(self, x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        """The pair at x."""
        ...


def from_network(network: Callable[[Tensor, float], Tensor], path: GaussianPath, prediction: str) -> Denoiser:
    """A denoiser from a bare network ``(x, label) -> output``.

    Args:
        network: called with x, [N, ...], and ``path.label(node.t)``.
        path: whose numbering of time the network was trained with.
        prediction: ``eps``, ``x0``, ``v`` or ``flow``.
    """

    def denoise(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        return to_pair(prediction, network(x, path.label(node.t)), x, node)

    return denoise


def bound(denoise: Denoiser, cond: Cond) -> Denoiser:
    """The denoiser with its condition in place; what a caller adds goes on top of it."""
    if not cond:
        return denoise
    fixed = cond

    def conditioned(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        return denoise(x, node, {**fixed, **cond} if cond else fixed)

    return conditioned


def corrected(denoise: Denoiser, correction: Correction) -> Denoiser:
    """The same denoiser with its pairs passed through a correction such as ``prediction.clip``."""

    def wrapped(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        return correction(denoise(x, node, cond), x, node)

    return wrapped
