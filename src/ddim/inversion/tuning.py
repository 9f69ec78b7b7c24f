"""A guided DDIM step as a function of the unconditional ("null") embedding, and the optimizer of that embedding.

The null embedding of a prompt is one tensor here: its words [N, L, D], or where the network also takes a pooled
embedding [N, P], all numbers of both, [N, L * D + P].
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.errors import NotFinite
from ..core.conditioning import POOLED, TEXT, Conditioning
from ..core.contracts import InversionProblem
from ..core.gradients import quick_gradients
from ..core.guidance import combined, skip_term
from ..core.late import require
from ..core.path import Node
from ..core.prediction import to_pair
from ..solvers.base import move


def null_of(condition: Conditioning) -> Tensor:
    """Returns the null embedding that a condition contains."""
    if POOLED not in condition:
        return condition.tensors[TEXT]
    return torch.cat([condition.tensors[name].flatten(1) for name in (TEXT, POOLED)], 1)


def parts_of(null: Tensor, like: Conditioning) -> Mapping[str, Tensor]:
    """Returns the tensors of a null embedding by name, in the shapes that they have in ``like``."""
    if POOLED not in like:
        return {TEXT: null}
    rows, tokens, width = like.tensors[TEXT].shape
    words, pooled = null[:, : tokens * width], null[:, tokens * width :]
    return {TEXT: words.reshape(rows, tokens, width), POOLED: pooled}


class GuidedStep:
    """A guided DDIM step from x as a function of the unconditional embedding, and its squared distance to a target.

    The conditional branch does not depend on that embedding, so that it is evaluated once, by the constructor.

    Args:
        problem: the model, its conditions and guidance. The conditions must contain text, of as many tokens as the
            embeddings that are tried.
        x: the sample at ``node``, [N, ...].
        node, after: the nodes where the step starts and ends.
        target: the sample that the step should reach at ``after``, [N, ...].
    """

    def __init__(self, problem: InversionProblem, x: Tensor, node: Node, after: Node, target: Tensor) -> None:
        self.problem, self.x, self.node, self.after, self.target = problem, x, node, after, target
        self.network, prompts = problem.need_network(), problem.prompts
        assert prompts.uncond is not None
        self.uncond, self.aim = prompts.uncond, null_of(prompts.cond)
        # For each row: whether the two branches can differ in their embedding only.
        others = [name for name in self.uncond.tensors if name not in (TEXT, POOLED)]
        same = [(self.uncond.tensors[k] == prompts.cond.tensors[k]).flatten(1).all(1) for k in others]
        self.alike = torch.stack(same).all(0) if same else torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.tunable = problem.guidance.applies(node, self.network.schedule.path.t_max)
        self.call = replace(problem.call, branches=("uncond",))
        self.quantised = bool(getattr(self.network, "quantised", ()))
        with torch.no_grad():
            (self.cond,) = self.network.ask(x, node, prompts.cond, call=problem.call)
            self.skip = skip_term(self.network, problem.guidance, x, node, prompts.cond, self.cond, problem.call)

    def without_call(self, null: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the end of the step, [N, ...], and its loss, [N], as far as they follow without a network call.

        They do if both branches have equal conditions, so that the guided output is the conditional one, or if the step
        does not use the unconditional branch. The loss of the other rows is infinite.

        Args:
            null: the null embedding of all rows.
        """
        x = self._step(self.cond if self.skip is None else self.cond + self.skip, self.x)
        known = (null == self.aim).flatten(1).all(1) & self.alike | (not self.tunable)
        return x, self._loss(x, slice(None)).masked_fill(~known, torch.inf)

    def __call__(self, null: Tensor, rows: Tensor, need_gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Makes the step for some rows.

        Args:
            null: the null embedding of these rows.
            rows: the indices of the rows, [n].
            need_gradient: whether to compute the gradient of the losses.

        Returns:
            the end of the step [n, ...], the losses [n], and their gradient with respect to ``null``, or None.
        """
        x, cond = self.x[rows], self.cond[rows]
        graded = torch.enable_grad() if need_gradient else torch.no_grad()
        with graded, quick_gradients(x.device), keeping_weights() if self.quantised else nullcontext():
            like = self.uncond[rows]
            leaf = null.detach().requires_grad_(need_gradient)
            condition = like.replace(**parts_of(leaf, like))
            (uncond,) = self.network.ask(x, self.node, condition, call=self.call)
            output = combined(self.network, cond, uncond, self.problem.guidance, self.node)
            end = self._step(output if self.skip is None else output + self.skip[rows], x)
            loss = self._loss(end, rows)
            if not need_gradient:
                return end, loss, None
            # The gradient of the sum of squares, divided afterwards: that of the mean could underflow in float16.
            size = end[0].numel()
            (gradient,) = torch.autograd.grad(loss.sum() * size, leaf)
        return end.detach(), loss.detach(), gradient / size

    def check(self, loss: Tensor, i: int, steps: int) -> None:
        """Raises NotFinite if a loss is NaN or infinity; the error names step ``i`` of ``steps``."""

        def error() -> NotFinite:
            return NotFinite(
                f"The sample is no longer finite after the step from t = {self.node.t:g} to t = {self.after.t:g} "
                f"(step {i + 1} of {steps}): the network returned NaN or infinity while its null embedding was tuned.",
                step=i + 1,
            )

        require(torch.isfinite(loss).all(), error)

    def _step(self, output: Tensor, x: Tensor) -> Tensor:
        """Returns the end of the DDIM step for a guided output of the network."""
        schedule = self.network.schedule
        pair = to_pair(schedule.prediction, output, x, self.node, sigma_data=schedule.sigma_data)
        return move(self.problem.hold(pair, x, self.node), self.after)

    def _loss(self, x: Tensor, rows: Tensor | slice) -> Tensor:
        return (x - self.target[rows]).square().flatten(1).mean(1)


def keeping_weights() -> AbstractContextManager[Any]:
    """A context in which the backward pass uses the weights that the forward pass has used.

    A layer that is cast to 8 bits between its calls has other numbers by then.
    """
    return torch.autograd.graph.saved_tensors_hooks(_without_variable, _as_it_is)


def rows_to_compute(unfinished: Tensor) -> Tensor:
    """Returns the indices of the rows to compute, [n]: on a GPU all rows, because another shape needs another graph.

    Args:
        unfinished: the rows whose result is needed, bool [N].
    """
    if unfinished.is_cuda:
        return torch.arange(len(unfinished), device=unfinished.device)
    return torch.nonzero(unfinished).flatten()


def only(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Returns ``new`` where ``rows`` is true and ``old`` elsewhere, [n, ...].

    Args:
        rows: bool [n].
        new, old: [n, ...].
    """
    return torch.where(rows.view(-1, *[1] * (new.ndim - 1)), new, old)


class Adam:
    """The optimizer Adam, with separate moments for each row (Kingma & Ba 2015, arXiv 1412.6980, Algorithm 1).

    The constants are the defaults of the paper: 0.9, 0.999 and 1e-8.

    Args:
        like: the embedding to optimize, [N, ...]; the moments get its shape and dtype.
        rate: the learning rate.
    """

    def __init__(self, like: Tensor, rate: float) -> None:
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)
        self.rate, self.count = rate, 0

    def __call__(self, null: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
        """Returns the next embedding of some rows.

        All rows must have been updated in every earlier call, since they share the count of updates. A row that is
        left out must not return later.

        Args:
            null: the embedding of these rows, [n, ...].
            gradient: the gradient of their losses, [n, ...].
            rows: the indices of the rows, [n].
        """
        self.count += 1
        mean = 0.9 * self.mean[rows] + 0.1 * gradient
        square = 0.999 * self.square[rows] + 0.001 * gradient.square()
        self.mean[rows], self.square[rows] = mean, square
        unbiased = square / (1 - 0.999**self.count)
        return null - self.rate * (mean / (1 - 0.9**self.count)) / (unbiased.sqrt() + 1e-8)


def _without_variable(tensor: Tensor) -> Tensor:
    """Returns a weight as it is now, whatever its module is given later; other tensors are returned as they are."""
    return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
