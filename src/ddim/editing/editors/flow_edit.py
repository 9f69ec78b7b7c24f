"""FlowEdit: moves the image itself along the difference of the velocities under two prompts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ..._utils.errors import InputError
from ...core.contracts import State
from ...core.path import Node
from ...solvers.base import move, straight, velocity
from ..sides import Question
from .base import SOURCE, TARGET, Editor, EditProblem, Usual, check_draws, in_proportion

if TYPE_CHECKING:
    from ...models.info import ModelInfo


@dataclass(frozen=True)
class FlowEdit(Editor):
    """Edits without an inversion (Kulikov et al. 2025, arXiv 2412.08629, Algorithm 1).

    Each step, from t to s, noises the image to t with new noise. The edited image z is noised by the same displacement,
    z_target = z_source + (z - x0), and moves along the difference of two velocities: z += (s - t) (v(z_target; target)
    - v(z_source; source)). The last ``sampled`` steps sample the target alone, by Euler's method from z_target.

    The paper is written for rectified flow. Every Gaussian path is one up to a scale (see ``straight``), so that the
    method also runs on Stable Diffusion. An edit to the source's own prompt at equal guidance returns the image to the
    bit, unless steps are ``sampled``.

    The usual settings are those of the paper: guidance 13.5 and 3.5 in the last 33 of 50 steps for Stable Diffusion 3,
    and the embedded scales 5.5 and 1.5 in the last 24 of 28 for FLUX. For other models they keep the same proportion to
    the model's usual guidance.

    Args:
        source_guidance: the guidance under the source's prompt; None is the usual one.
        draws_per_step: the number of noises over which the difference is averaged, n_avg in the paper.
        sampled: the number of last steps that sample the target alone, n_min in the paper.

    Raises:
        InputError: a value is out of range.
    """

    source_guidance: float | None = None
    draws_per_step: int = 1
    sampled: int = 0

    name: ClassVar[str] = "flow-edit"
    paper: ClassVar[str] = "Kulikov et al. 2025, arXiv 2412.08629"
    nfe: ClassVar[int] = 2
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_draws(self.draws_per_step)
        if self.sampled < 0:
            raise InputError(f"{self.sampled} is negative; 0 is usual.", parameter="sampled")

    @property
    def self_edit(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether an edit to the source's own prompt returns the image: without ``sampled`` steps."""
        return self.sampled == 0

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the paper's settings, in proportion to the usual guidance of the model."""
        (guidance, embedded), (source, source_embedded) = in_proportion(info, 13.5, 5.5), in_proportion(info, 3.5, 1.5)
        return Usual(guidance, source, embedded, source_embedded, strength=33 / 50 if embedded is None else 24 / 28)

    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes a step of Algorithm 1."""
        t, s = problem.grid[i], problem.grid[i + 1]
        time, next_time = straight(t)[1], straight(s)[1]
        if problem.grid.steps - i <= self.sampled:
            return self._sampled_step(problem, state, i)
        x, x0 = state[TARGET], problem.x0
        moves: list[torch.Tensor] = []
        for k in problem.numbers(i, self.draws_per_step):
            moved, noisy = displaced(problem, x, t, k)
            target, source = problem.ask(t, Question(moved, problem.target), Question(noisy, problem.source))
            moves.append(velocity(target) - problem.each(velocity(source)))
        return {SOURCE: x0, TARGET: x + (next_time - time) * torch.stack(moves).mean(0)}

    def _sampled_step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes an Euler step under the target's prompt. The source keeps the noise of the first of these steps."""
        t, s, x, x0 = problem.grid[i], problem.grid[i + 1], state[TARGET], problem.x0
        noise = state.get("noise")
        if noise is None:
            number = problem.numbers(i, self.draws_per_step)[0]
            noise = problem.noise(x0, number)
            x, _ = displaced(problem, x, t, number)
        (pair,) = problem.ask(t, Question(x, problem.target))
        return {SOURCE: s.alpha * x0 + s.sigma * noise, TARGET: move(pair, s), "noise": noise}


def displaced(problem: EditProblem, x: torch.Tensor, node: Node, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the targets' and the sources' noised images at a node: z_source + (x - x0) and z_source.

    Args:
        problem: the problem.
        x: the edited images, [N K, ...].
        node: the node.
        number: the number of the noise; see ``StepNoise``.
    """
    noisy = node.alpha * problem.x0 + node.sigma * problem.noise(problem.x0, number)
    return problem.each(noisy) + straight(node)[0] * (x - problem.each(problem.x0)), noisy
