"""Guidance: Denoiser -> Denoiser, stateless, one formula each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .._utils.errors import InputError, is_number, is_range
from .denoiser import Cond, Denoiser
from .path import Node
from .prediction import Pair, from_pair, to_pair

WORDS, NULL = "words", "null"
"""In a ``Cond``: what conditions each sample, and what stands for no condition; tensors [N, ...] of one shape."""


@dataclass(frozen=True)
class Guidance:
    """How classifier-free guidance is set (Ho & Salimans 2022, arXiv 2207.12598).

    Args:
        weight: w; 1 is the conditional model, 0 the unconditional one.
        rescale: phi in [0, 1]: how far the guided prediction gets the conditional one's standard deviation back
            (Lin et al. 2024, arXiv 2305.08891, Eq. 14-16).
        interval: (low, high) of t / T in [0, 1]; outside it w = 1 (Kynkaanniemi et al. 2024, arXiv 2404.07724).
        together: ask for both predictions in one batch; False asks one after the other, with half the memory.

    Raises:
        InputError: a number out of its range.
    """

    weight: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    together: bool = True

    def __post_init__(self) -> None:
        if not is_number(self.weight):
            raise InputError(
                f"{self.weight} is not a number; 1 is the conditional model, 7.5 is usual.", parameter="guidance"
            )
        if not is_number(self.rescale) or not 0 <= self.rescale <= 1:
            raise InputError(
                f"{self.rescale} lies outside [0, 1]; 0 switches it off, 0.7 is usual.", parameter="rescale"
            )
        if not is_range(self.interval):
            raise InputError(f"{self.interval} is not a pair of numbers; (0, 1) is all of it.", parameter="interval")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise InputError(f"({low:g}, {high:g}) is no part of [0, 1]; (0, 1) is all of it.", parameter="interval")

    def at(self, weight: float) -> "Guidance":
        """The same with another weight."""
        return Guidance(weight, self.rescale, self.interval, self.together)

    def applies(self, node: Node, t_max: float) -> bool:
        """Whether the null prediction counts at a node: a weight other than 1, inside the interval."""
        low, high = self.interval
        return self.weight != 1 and low <= node.t / t_max <= high

    @property
    def options(self) -> dict[str, Any]:
        """Plain values, as a ``LatentCode`` keeps them."""
        return {"weight": float(self.weight), "rescale": float(self.rescale), "interval": list(self.interval)}

    @staticmethod
    def of(options: Mapping[str, Any] | None, together: bool = True) -> "Guidance":
        """What ``options`` describes; the conditional model where there is nothing."""
        if not options:
            return Guidance(together=together)
        low, high = options.get("interval", (0.0, 1.0))
        return Guidance(float(options["weight"]), float(options.get("rescale", 0.0)), (low, high), together)


def combine(null: Pair, words: Pair, weight: float) -> Pair:
    """null + w (words - null), Eq. 6 of Ho & Salimans 2022 (their w + 1 is our w).

    A pair is linear in what the network says at one x, so the formula is the same for eps, x0, v and flow.
    """
    return Pair(*(n + weight * (c - n) for n, c in zip(null, words, strict=True)))


def blend(null: Pair, words: Pair, x: Tensor, node: Node, guidance: Guidance, prediction: str = "eps") -> Pair:
    """``combine``, and rescaled where ``guidance`` says so: the guided pair from the two that a model said at x."""
    pair = combine(null, words, guidance.weight)
    return _rescaled(pair, words, x, node, guidance.rescale, prediction) if guidance.rescale else pair


def classifier_free(denoise: Denoiser, guidance: Guidance, prediction: str = "eps", t_max: float = 1000.0) -> Denoiser:
    """A denoiser under classifier-free guidance. Its ``cond`` holds ``words`` and ``null``.

    Args:
        denoise: the model; it reads ``cond["words"]``. Whatever else ``cond`` holds goes to both halves.
        guidance: weight, rescale, interval.
        prediction: what the network says, in which ``rescale`` is measured.
        t_max: T, of which ``interval`` is a part.

    Returns:
        A denoiser; where w = 1 it asks the model once.
    """

    def guided(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        given = dict(cond or {})
        null = given.pop(NULL, None)
        if null is None or not guidance.applies(node, t_max):
            return denoise(x, node, given)
        return blend(*_both(denoise, x, node, given, null, guidance.together), x, node, guidance, prediction)

    return guided


def _both(
    denoise: Denoiser, x: Tensor, node: Node, cond: Mapping[str, Any], null: Tensor, together: bool
) -> tuple[Pair, Pair]:
    """The pairs under ``null`` and under ``words``."""
    if not together:
        return denoise(x, node, {**cond, WORDS: null, "half": "null"}), denoise(x, node, {**cond, "half": "words"})
    twice = {k: torch.cat([v, v]) if isinstance(v, Tensor) else v for k, v in cond.items()}
    pair = denoise(torch.cat([x, x]), node, {**twice, WORDS: torch.cat([null, cond[WORDS]]), "half": "both"})
    n = len(x)
    return Pair(pair.x0[:n], pair.eps[:n]), Pair(pair.x0[n:], pair.eps[n:])


def _rescaled(pair: Pair, words: Pair, x: Tensor, node: Node, phi: float, prediction: str) -> Pair:
    said, plain = (from_pair(prediction, p, node.alpha, node.sigma) for p in (pair, words))
    ratio = _spread(plain) / _spread(said).clamp(min=1e-12)
    return to_pair(prediction, said * (phi * ratio + (1 - phi)), x, node)


def _spread(x: Tensor) -> Tensor:
    return x.flatten(1).std(dim=1).view(-1, *[1] * (x.ndim - 1))


class Classifier(Protocol):
    """What can tell the class of a noisy sample; ``ddim.load_classifier`` gives one."""

    def __call__(self, x: Tensor, node: Node, labels: Tensor) -> Tensor:
        """log p(label | x) at a node for each sample's own label, [N], differentiable in x, [N, ...]."""
        ...


def classifier_guided(denoise: Denoiser, classifier: Classifier, labels: Tensor, weight: float) -> Denoiser:
    """A denoiser led to ``labels`` by a classifier: eps' = eps - sigma w grad_x log p(label | x).

    Eq. 14 of Dhariwal & Nichol 2021 (arXiv 2105.05233), with the scale w of their Algorithm 2; x0 is derived anew,
    so that the pair still explains x. The score of any Gaussian path is -eps / sigma, so the formula is not only
    that of a variance-preserving one. The gradient is of the classifier alone, and is taken whether or not the
    caller records gradients. Where sigma = 0 it has no weight, and where alpha = 0 x says nothing of the label:
    there the pair stays.

    Args:
        denoise: the model.
        classifier: log p(label | x), of the same pictures and noise levels.
        labels: a class for each sample, int64 [N].
        weight: w; 1 is p(x | label) by Bayes' rule, 0 is the model, more is truer to the class and less varied.

    Raises:
        InputError: a weight that is not a number.
    """
    check_classifier_weight(weight)

    def guided(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
        pair = denoise(x, node, cond)
        if weight == 0 or node.sigma == 0 or node.alpha == 0:
            return pair
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(classifier(at, node, labels).sum(), at)
        eps = pair.eps - node.sigma * weight * slope
        return Pair((x - node.sigma * eps) / node.alpha, eps)

    return guided


def check_classifier_weight(weight: float) -> None:
    """Raises InputError for a weight that is not a number."""
    if not is_number(weight):
        raise InputError(f"{weight} is not a number; 1 is Bayes' rule, 3 is usual.", parameter="classifier_weight")
