"""One guided step as a function of the null embedding, and Adam, which moves that embedding."""

import torch
from torch import Tensor

from .._utils.errors import NotFinite
from ..core.conditioning import TEXT
from ..core.contracts import InversionProblem
from ..core.denoiser import Call
from ..core.gradients import quick_gradients
from ..core.path import Node
from ..core.prediction import to_pair
from ..solvers.base import move


class Landing:
    """Where guided DDIM steps from x land, and how far from ``target``. The prompt's branch is asked for once.

    Args:
        problem: model, conditions and guidance; the conditions hold text.
        x: at ``node``, [N, ...].
        node, after: from where to where.
        target: at ``after``, [N, ...].
    """

    def __init__(self, problem: InversionProblem, x: Tensor, node: Node, after: Node, target: Tensor) -> None:
        self.problem, self.x, self.node, self.after, self.target = problem, x, node, after, target
        self.network, prompts = problem.need_network(), problem.prompts
        assert prompts.uncond is not None
        self.uncond, self.text = prompts.uncond, prompts.cond.tensors[TEXT]
        # whether the two branches differ in their text alone, for each row
        others = [name for name in self.uncond.tensors if name != TEXT]
        same = [(self.uncond.tensors[k] == prompts.cond.tensors[k]).flatten(1).all(1) for k in others]
        self.alike = torch.stack(same).all(0) if same else torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.tunable = problem.guidance.applies(node, self.network.schedule.path.t_max)
        with torch.no_grad():
            (self.cond,) = self.network.ask(x, node, prompts.cond)

    def unasked(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Where the step lands, and the loss, without asking the network: where the embedding is the prompt's and
        nothing else tells the branches apart, or where it has no say. Elsewhere the loss is infinite.
        """
        x = self._moved(self.cond, self.x)
        known = (text == self.text).flatten(1).all(1) & self.alike | (not self.tunable)
        return x, self._loss(x, slice(None)).masked_fill(~known, torch.inf)

    def __call__(self, text: Tensor, rows: Tensor, need_gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Where the steps of ``rows`` land under ``text`` [len(rows), L, D], their losses, and the losses' gradient."""
        x, cond = self.x[rows], self.cond[rows]
        with torch.enable_grad() if need_gradient else torch.no_grad(), quick_gradients(x.device):
            leaf = text.detach().requires_grad_(need_gradient)
            (uncond,) = self.network.ask(x, self.node, self.uncond[rows].replace(text=leaf), call=Call(("uncond",)))
            landed = self._moved(self.network.combine(cond, uncond, self.problem.guidance, self.node), x)
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

    def _moved(self, output: Tensor, x: Tensor) -> Tensor:
        """The DDIM step by a guided output, x0 held."""
        pair = to_pair(self.network.schedule.prediction, output, x, self.node)
        return move(self.problem.hold(pair, x, self.node), self.after)

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

    def __call__(self, text: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
        """The next embedding of ``rows``, which have been updated equally often: a row stops by being left out."""
        self.count += 1
        mean = 0.9 * self.mean[rows] + 0.1 * gradient
        square = 0.999 * self.square[rows] + 0.001 * gradient.square()
        self.mean[rows], self.square[rows] = mean, square
        unbiased = square / (1 - 0.999**self.count)
        return text - self.rate * (mean / (1 - 0.9**self.count)) / (unbiased.sqrt() + 1e-8)
