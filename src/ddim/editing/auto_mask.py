"""Automatic masks: where the predictions under the source's and the target's prompt differ."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from .._utils.errors import InputError, UnknownName, is_number, is_whole
from ..core.contracts import Noise
from ..core.denoiser import PLAIN, Call, Network
from ..core.path import Node
from .sides import Question, Side, ask

DIFFERENCE = "difference"
"""The name of an ``AutoMask`` with its default settings."""
OUTLIER = 3.0
"""Differences above this multiple of their mean over the image are outliers, and count as this multiple."""


@dataclass(frozen=True)
class AutoMask:
    """Finds where an edit may change the image, by the method of DiffEdit (Couairon et al. 2022, arXiv 2210.11427).

    The image is noised to one level with several noises (section 3.2, step 1). Under the source's and the target's
    condition the network predicts two noises for each. Their absolute difference, averaged over the noises and the
    channels, is large where the two conditions ask for different things. Outliers are clamped at three times the mean
    over the image, and the map is divided by its maximum. The mask is where it exceeds ``threshold``. The predictions
    are those without guidance, which would only scale the difference.

    Args:
        level: in (0, 1): the time t, as a part of the largest one of the model's path, to which the image is noised.
        draws: the number of noises.
        threshold: in [0, 1): the part of the map's maximum that the mask exceeds.
        grow: by how many pixels of the latent the mask grows on every side.

    Raises:
        InputError: a value is out of range.
    """

    level: float = 0.5
    draws: int = 10
    threshold: float = 0.5
    grow: int = 0

    def __post_init__(self) -> None:
        if not is_number(self.level) or not 0 < self.level < 1:
            raise InputError(f"{self.level!r} lies outside (0, 1); 0.5 is usual.", parameter="level")
        if not is_whole(self.draws) or self.draws < 1:
            raise InputError(f"{self.draws!r} is not a number of noises; 10 is usual.", parameter="draws")
        if not is_number(self.threshold) or not 0 <= self.threshold < 1:
            raise InputError(f"{self.threshold!r} lies outside [0, 1); 0.5 is usual.", parameter="threshold")
        if not is_whole(self.grow) or self.grow < 0:
            raise InputError(f"{self.grow!r} is not a number of pixels of the latent; use 0 or more.", parameter="grow")

    @staticmethod
    def of(asked: Any) -> "AutoMask | None":
        """Returns the settings for the argument ``auto_mask`` of ``edit``.

        Raises:
            InputError: it is neither None, ``"difference"`` nor an ``AutoMask``.
        """
        if asked is None or isinstance(asked, AutoMask):
            return asked
        if asked == DIFFERENCE:
            return AutoMask()
        if isinstance(asked, str):
            raise UnknownName("automatic mask", asked, [DIFFERENCE], parameter="auto_mask")
        raise InputError(f"{asked!r} is neither {DIFFERENCE!r} nor an AutoMask.", parameter="auto_mask")

    def node(self, network: Network, *, whole: bool = False) -> Node:
        """Returns the node to which images are noised.

        Args:
            network: the model.
            whole: whether its network takes only whole timesteps.
        """
        path = network.schedule.path
        t = self.level * path.t_max
        return path.node(max(1.0, round(t)) if whole or path.discrete else t)

    def mask(
        self, network: Network, node: Node, x0: Tensor, source: Side, target: Side, noise: Noise, *, call: Call = PLAIN
    ) -> Tensor:
        """Returns the mask of each target, float32 [N, K, H, W] of 0 and 1.

        Args:
            network: the model.
            node: the node of ``node``.
            x0: the encoded images, [N, ...].
            source: the conditions of the images, N rows, without a weight of guidance.
            target: those of the targets, N K rows; the targets of one image are neighbours.
            noise: the source of noise for [N, ...].
            call: the other arguments of the network calls.
        """
        many = (target.prompts.cond.rows or len(x0)) // len(x0)
        total = torch.zeros(len(x0), many, *x0.shape[2:], device=x0.device)
        for _ in range(self.draws):
            x = node.alpha * x0 + node.sigma * noise(x0)
            questions = Question(x, source), Question(x.repeat_interleave(many, 0), target)
            own, others = (pair.eps for pair in ask(network, node, *questions, call=call))
            total += (others.unflatten(0, (len(x0), many)) - own[:, None]).abs().float().mean(2)
        return self.of_map(total / self.draws)

    def of_map(self, difference: Tensor) -> Tensor:
        """Returns the mask of a map of differences, [N, K, H, W]; empty where there is no difference at all."""
        most = OUTLIER * difference.mean((-2, -1), keepdim=True)
        kept = difference.minimum(most)
        top = kept.amax((-2, -1), keepdim=True)
        mask = ((kept > self.threshold * top) & (top > 0)).float()
        return max_pool2d(mask, 2 * self.grow + 1, 1, self.grow) if self.grow else mask
