"""One guided step as a function of the null embedding, and Adam, which moves that embedding."""

import torch
from torch import Tensor

from .._utils.errors import NotFinite
from ..core.gradients import quick_gradients
from ..core.guidance import NULL, WORDS, blend
from ..core.path import Node
from ..core.prediction import Pair
from ..solvers.base import move
from .base import InversionProblem


class Landing:
    """Where guided DDIM steps from x land, and how far from ``target``. The prompt's prediction is asked for once.

    Args:
        scene: model, condition and guidance.
        x: at ``node``, [N, ...].
        node, after: from where to where.
        target: at ``after``, [N, ...].
    """

    def __init__(self, scene: InversionProblem, x: Tensor, node: Node, after: Node, target: Tensor) -> None:
        self.scene, self.x, self.node, self.after, self.target = scene, x, node, after, target
        self.cond = {k: v for k, v in scene.cond.items() if k != NULL}
        self.tunable = scene.guidance.applies(node, scene.t_max)
        with torch.no_grad():
            self.words = scene.denoise(x, node, {**self.cond, "half": "words"})

    def unasked(self, null: Tensor) -> tuple[Tensor, Tensor]:
        """Where the step lands, and the loss, without asking the network: where the null embedding is the prompt's,
        or has no say. Elsewhere the loss is infinite.
        """
        x = move(self.scene.hold(self.words, self.x, self.node), self.after)
        known = (null == self.cond[WORDS]).flatten(1).all(1) | (not self.tunable)
        return x, self._loss(x, slice(None)).masked_fill(~known, torch.inf)

    def __call__(self, null: Tensor, rows: Tensor, need_gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Where the steps of ``rows`` land under ``null`` [len(rows), L, D], their losses, and the losses' gradient."""
        cond = {k: v[rows] if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        x, words = self.x[rows], Pair(self.words.x0[rows], self.words.eps[rows])
        with torch.enable_grad() if need_gradient else torch.no_grad(), quick_gradients(x.device):
            leaf = null.detach().requires_grad_(need_gradient)
            pair = self.scene.denoise(x, self.node, {**cond, WORDS: leaf, "half": "null"})
            guided = blend(pair, words, x, self.node, self.scene.guidance, self.scene.prediction)
            landed = move(self.scene.hold(guided, x, self.node), self.after)
            loss = self._loss(landed, rows)
            if not need_gradient:
                return landed, loss, None
            # The sum's gradient, not the mean's: half precision would lose the latter's small numbers.
            size = landed[0].numel()
            (gradient,) = torch.autograd.grad(loss.sum() * size, leaf)
        return landed.detach(), loss.detach(), gradient / size

    def check(self, loss: Tensor, i: int, steps: int) -> None:
        """Raises NotFinite, naming step ``i`` of ``steps``, where a loss is no number."""
        if not bool(torch.isfinite(loss).all()):
            raise NotFinite(
                f"The sample is no longer finite after the step from t = {self.node.t:g} to t = {self.after.t:g} "
                f"(step {i + 1} of {steps}): the network returned NaN or infinity while its null embedding was tuned.",
                step=i + 1,
            )

    def _loss(self, x: Tensor, rows: Tensor | slice) -> Tensor:
        return (x - self.target[rows]).square().flatten(1).mean(1)


class Adam:
    """Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1, with its own constants, a row at a time.

    Args:
        like: the embedding, [N, L, D]; the moments are of its shape and dtype.
        rate: the learning rate.
    """

    def __init__(self, like: Tensor, rate: float) -> None:
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)
        self.rate, self.count = rate, 0

    def __call__(self, null: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
        """The next embedding of ``rows``, which have been updated equally often: a row stops by being left out."""
        self.count += 1
        mean = 0.9 * self.mean[rows] + 0.1 * gradient
        square = 0.999 * self.square[rows] + 0.001 * gradient.square()
        self.mean[rows], self.square[rows] = mean, square
        unbiased = square / (1 - 0.999**self.count)
        return null - self.rate * (mean / (1 - 0.9**self.count)) / (unbiased.sqrt() + 1e-8)
