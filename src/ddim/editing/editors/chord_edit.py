"""ChordEdit: one step along the difference of two predicted images, averaged over two noise levels."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..._utils.errors import InputError, is_number
from ...core.contracts import State
from ...core.guidance import Guidance
from ...core.path import GaussianPath, Node
from ..sides import Question
from .base import SOURCE, TARGET, Editor, EditProblem, Usual, check_draws

if TYPE_CHECKING:
    from ...models.info import ModelInfo


@dataclass(frozen=True)
class ChordEdit(Editor):
    """Edits in one step and without an inversion (ChordEdit, CVPR 2026, arXiv 2602.19083).

    The image is noised to a time tau, and R(tau) is the difference of the images that the model predicts there under
    the target's and the source's prompt. The edit is x0 + lambda (delta R(t) + t R(t - delta)) / (t + delta), with the
    same noise at both times (Eq. 4.5). Lambda is the strength of ``edit``. The method is made for models of one or few
    steps and runs on all. An edit to the source's own prompt returns the image to the bit, unless it is cleaned.

    ``clean`` noises the edited image to a lower time and takes the image that the model predicts there under the
    target's prompt. It makes the edit sharper, and changes what should stay. It begins at lambda = 1, and the strength
    then moves the result back towards the image; the paper cleans the edit at its lambda.

    Times are parts of the table of timesteps, such as 0.9 for the timestep 899 of 999. On paths without a table they
    are sigma / (alpha + sigma), which is sigma on rectified flow. The guidance is that of both prompts, by default 1 as
    in the paper. Since both prompts share what guidance leads away from, it multiplies R.

    Args:
        time: the time t, in (0, 1).
        delta: the distance of the second time, above 0 and below t.
        clean: the time of the clean-up, in (0, 1); None does without. The authors use 0.3.
        draws_per_step: the number of noises over which R is averaged.

    Raises:
        InputError: a value is out of range.
    """

    time: float = 0.9
    delta: float = 0.15
    clean: float | None = None
    draws_per_step: int = 1

    name: ClassVar[str] = "chord-edit"
    paper: ClassVar[str] = "ChordEdit 2026, arXiv 2602.19083"
    nfe: ClassVar[int] = 5
    draws: ClassVar[bool] = True
    steps: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("time", "clean"):
            value = getattr(self, name)
            if not (name == "clean" and value is None) and not (is_number(value) and 0 < value < 1):
                usual = "0.9 is usual" if name == "time" else "0.3 is usual, and None does without"
                raise InputError(f"{value!r} lies outside (0, 1); {usual}.", parameter=name)
        if not is_number(self.delta) or not 0 < self.delta < self.time:
            raise InputError(f"{self.delta!r} lies outside (0, {self.time:g}); 0.15 is usual.", parameter="delta")
        check_draws(self.draws_per_step)

    @property
    def self_edit(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether an edit to the source's own prompt returns the image: without ``clean``."""
        return self.clean is None

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the guidance 1, as in the paper."""
        return Usual(embedded=info.embedded, source_embedded=info.embedded)

    def guidances(self, info: "ModelInfo", asked: float | Guidance | None) -> tuple[Guidance, Guidance]:
        """Returns the guidance of the targets for the sources too."""
        _, target = super().guidances(info, asked)
        return target, target

    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes the only step; the strength is applied afterwards."""
        path, x0, x = problem.network.schedule.path, problem.x0, state[TARGET]
        t, near = self.time, self.time - self.delta
        changes: list[Tensor] = []
        for k in range(self.draws_per_step):
            noise = problem.noise(x0, k)
            first, second = (_difference(problem, _at(path, time), noise) for time in (t, near))
            changes.append((self.delta * first + t * second) / (t + self.delta))
        x = x + torch.stack(changes).mean(0)
        if self.clean is not None:
            node, noise = _at(path, self.clean), problem.each(problem.noise(x0, 0))
            (pair,) = problem.ask(node, Question(node.alpha * x + node.sigma * noise, problem.target))
            x = pair.x0
        return {SOURCE: x0, TARGET: x}


def _at(path: GaussianPath, time: float) -> Node:
    """Returns the node at a part of the table of timesteps, or at sigma / (alpha + sigma) on a path without one."""
    if path.discrete:
        return path.node(float(max(round(time * path.t_max), 1)))
    log_snr = torch.tensor([2 * math.log((1 - time) / time)], dtype=torch.float64)
    return path.node(float(path.t_of_log_snr(log_snr)[0]))


def _difference(problem: EditProblem, node: Node, noise: Tensor) -> Tensor:
    """Returns R: the difference of the predicted images, [N K, ...]."""
    noisy = node.alpha * problem.x0 + node.sigma * noise
    questions = Question(problem.each(noisy), problem.target), Question(noisy, problem.source)
    target, source = problem.ask(node, *questions)
    return target.x0 - problem.each(source.x0)
