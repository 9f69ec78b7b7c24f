"""Editors that replay the noise maps of edit-friendly inversion, beside their source."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ...core.contracts import State
from ...core.denoiser import Denoiser
from ...core.path import Node
from ...core.prediction import Pair
from ...solvers.base import NoisySolver
from ..sides import Question
from .base import SOURCE, TARGET, Editor, EditProblem


class OnNoiseMaps(Editor):
    """Abstract base class of editors on the codes of ``EditFriendly``.

    The source is sampled again from its noise maps: x' = mu(x) + std z, and the last step ends at the encoded image.
    Each target makes the same step from its own sample, y' = x' + mu(y) - mu(x), where mu(y) is that of the pair that
    the editor predicts. So a target whose pairs are those of its source is the source to the bit.
    """

    needs_trajectory: ClassVar[bool] = False

    @abstractmethod
    def pairs(self, problem: EditProblem, x: Tensor, source: Tensor, node: Node) -> tuple[Pair, Pair]:
        """Returns the pairs of the targets and of their sources at a node.

        Args:
            problem: the problem.
            x: the targets' samples, [N K, ...].
            source: the sources' samples, [N, ...].
            node: their node.
        """

    def start(self, problem: EditProblem) -> State:
        """Returns the source at the node ``problem.reach.begin``, replayed from its noise maps."""
        source = problem.noisy
        assert source is not None
        with torch.no_grad():
            for i in range(problem.reach.begin):
                (pair,) = problem.ask(problem.grid[i], Question(source, problem.source))
                source, _ = _source_step(problem, pair, source, i)
        return {SOURCE: source, TARGET: problem.each(source)}

    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes the step of the sources and of the targets."""
        x, source = state[TARGET], state[SOURCE]
        target_pair, source_pair = self.pairs(problem, x, source, problem.grid[i])
        after, mean = _source_step(problem, source_pair, source, i)
        moved, _ = _moments(problem, target_pair, x, i)
        return {SOURCE: after, TARGET: problem.each(after) + (moved - problem.each(mean))}


def _source_step(problem: EditProblem, pair: Pair, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Returns the sources' samples after step i, and the mean mu of that step."""
    mean, std = _moments(problem, pair, x, i)
    last = i + 1 == problem.grid.steps
    return problem.x0 if last else mean + std * problem.extras["noise"][:, i].to(mean), mean


def _moments(problem: EditProblem, pair: Pair, x: Tensor, i: int) -> tuple[Tensor, float]:
    """Returns the mean and the standard deviation of step i for a predicted pair."""
    solver = problem.solver
    assert isinstance(solver, NoisySolver)
    return solver.moments(_answering(pair), x, problem.grid, i)


def _answering(pair: Pair) -> Denoiser:
    """Returns a denoiser that answers with a pair that is known already."""

    def denoise(x: Tensor, node: Node) -> Pair:
        return pair

    return denoise
