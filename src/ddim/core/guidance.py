"""Guidance: a network under two conditions as one denoiser, one formula each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .._utils.errors import InputError, is_number, is_range
from .conditioning import PromptConditioning
from .denoiser import PLAIN, Call, Denoiser, ModelDenoiser, Network
from .path import Node
from .prediction import NO_HOLD, Hold, Pair, to_pair

Prompts = PromptConditioning | Callable[[Node], PromptConditioning]
"""The two conditions, the same at every node or of each node its own."""


@dataclass(frozen=True)
class Guidance:
    """How classifier-free guidance is set (Ho & Salimans 2022, arXiv 2207.12598).

    Args:
        weight: w; 1 is the conditional model, 0 the unconditional one.
        rescale: phi in [0, 1]: how far the guided output gets the conditional one's standard deviation back
            (Lin et al. 2024, arXiv 2305.08891, Eq. 14-16).
        interval: (low, high) of t / T in [0, 1]; outside it w = 1 (Kynkaanniemi et al. 2024, arXiv 2404.07724).
        embedded: a number that a guidance-distilled network is told, beside the weight; None for other networks.
        batched_cfg: ask for both branches in one batch; False asks one after the other, with half the memory.

    Raises:
        InputError: a number out of its range.
    """

    weight: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    embedded: float | None = None
    batched_cfg: bool = True

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
        if self.embedded is not None and not is_number(self.embedded):
            raise InputError(f"{self.embedded} is not a number; 3.5 is usual.", parameter="embedded")

    def at(self, weight: float) -> "Guidance":
        """The same with another weight."""
        return replace(self, weight=weight)

    def applies(self, node: Node, t_max: float) -> bool:
        """Whether the unconditional branch counts at a node: a weight other than 1, inside the interval."""
        low, high = self.interval
        return self.weight != 1 and low <= node.t / t_max <= high

    @property
    def options(self) -> dict[str, Any]:
        """Plain values, as a ``LatentCode`` keeps them."""
        told = {} if self.embedded is None else {"embedded": float(self.embedded)}
        low, high = self.interval
        interval = [float(low), float(high)]
        return {"weight": float(self.weight), "rescale": float(self.rescale), "interval": interval, **told}

    @staticmethod
    def of(options: Mapping[str, Any] | None, batched_cfg: bool = True) -> "Guidance":
        """What ``options`` describes; the conditional model where there is nothing."""
        if not options:
            return Guidance(batched_cfg=batched_cfg)
        low, high = options.get("interval", (0.0, 1.0))
        return Guidance(
            float(options["weight"]),
            float(options.get("rescale", 0.0)),
            (low, high),
            options.get("embedded"),
            batched_cfg,
        )


def combine(cond: Tensor, uncond: Tensor, guidance: Guidance) -> Tensor:
    """uncond + w (cond - uncond), Eq. 6 of Ho & Salimans 2022 (their w + 1 is our w), and rescaled where asked for.

    Args:
        cond, uncond: what the network said under each condition, [N, ...].
        guidance: weight and rescale.
    """
    output = uncond + guidance.weight * (cond - uncond)
    if not guidance.rescale:
        return output
    ratio = _spread(cond) / _spread(output).clamp(min=1e-12)
    return output * (guidance.rescale * ratio + (1 - guidance.rescale))


def _spread(x: Tensor) -> Tensor:
    return x.flatten(1).std(dim=1).view(-1, *[1] * (x.ndim - 1))


def guided(
    network: Network, guidance: Guidance, prompts: Prompts, *, hold: Hold = NO_HOLD, call: Call = PLAIN
) -> ModelDenoiser:
    """A network under classifier-free guidance as a denoiser. Where w = 1 it asks the network once.

    Args:
        network: the model.
        guidance: weight, rescale, interval.
        prompts: the two conditions of each sample, or of each sample at a node.
        hold: of x0, after guidance.
        call: what every call is told; a denoiser's own call adds its controller.

    Raises:
        InputError: in a call: a weight other than 1 where there is no unconditional branch.
    """
    schedule = network.schedule

    def denoise(x: Tensor, node: Node, own: Call = PLAIN) -> Pair:
        at = prompts(node) if callable(prompts) else prompts
        told = replace(call, controller=own.controller)
        if guidance.applies(node, schedule.path.t_max):
            if at.uncond is None:
                raise InputError(
                    f"{guidance.weight:g} needs something to lead away from, and this model has none; use 1.",
                    parameter="guidance",
                )
            told = replace(told, branches=("uncond", "cond"), batched=guidance.batched_cfg)
            uncond, cond = network.ask(x, node, at.uncond, at.cond, call=told)
            output = network.combine(cond, uncond, guidance, node)
        else:
            (output,) = network.ask(x, node, at.cond, call=told)
        pair = to_pair(schedule.prediction, output, x, node)
        return hold(pair, x, node) if hold.acts else pair

    return denoise


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

    def led(x: Tensor, node: Node) -> Pair:
        pair = denoise(x, node)
        if weight == 0 or node.sigma == 0 or node.alpha == 0:
            return pair
        with torch.inference_mode(False), torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(classifier(at, node, labels).sum(), at)
        eps = pair.eps - node.sigma * weight * slope
        return Pair((x - node.sigma * eps) / node.alpha, eps)

    return led


def check_classifier_weight(weight: float) -> None:
    """Raises InputError for a weight that is not a number."""
    if not is_number(weight):
        raise InputError(f"{weight} is not a number; 1 is Bayes' rule, 3 is usual.", parameter="classifier_weight")
