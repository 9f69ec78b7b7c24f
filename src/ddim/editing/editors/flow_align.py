"""FlowAlign: FlowEdit whose guidance leads away from the source's prompt, with a pull to the source."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..._utils.errors import InputError, is_number
from ...core.contracts import State
from ...solvers.base import straight, velocity
from ..sides import Question
from .base import SOURCE, TARGET, Editor, EditProblem, Usual, proportional
from .flow_edit import displaced

if TYPE_CHECKING:
    from ...models.info import ModelInfo


@dataclass(frozen=True)
class FlowAlign(Editor):
    """Edits without an inversion, and pulls each prediction to the source (Kim et al. 2025, arXiv 2505.23145).

    As in ``FlowEdit``, each step noises the image to q with new noise, and the edited image to p = q + (x - x0). With
    the velocity v_q = v(q; source) and v_p = v(p; source) + omega (v(p; target) - v(p; source)), a step from t to s is
    x += (s - t) (v_p - v_q) + zeta (x0(q) - x0(p)), where x0(q) and x0(p) are the images that v_q and v_p predict.

    The guidance of ``edit`` is omega: it leads away from the source's prompt and not from an empty or a negative one,
    so that no other classifier-free guidance is used. An edit to the source's own prompt returns the image to the bit.

    The usual settings are those of the paper for Stable Diffusion 3: omega = 7.5 and all of 33 steps. For other models
    omega keeps the same proportion to the usual guidance; it is 1 for models whose guidance is distilled. Models of
    few steps keep their number of steps.

    Args:
        zeta: the pull to the source in each step, at least 0. It adds up over the steps.

    Raises:
        InputError: ``zeta`` is no number or negative.
    """

    zeta: float = 0.01

    name: ClassVar[str] = "flow-align"
    paper: ClassVar[str] = "Kim et al. 2025, arXiv 2505.23145"
    nfe: ClassVar[int] = 3
    self_edit: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    from_source: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.zeta) or self.zeta < 0:
            raise InputError(f"{self.zeta!r} is not a number of at least 0; 0.01 is usual.", parameter="zeta")

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the paper's settings, in proportion to the usual guidance of the model."""
        return Usual(
            proportional(info, 7.5),
            embedded=info.embedded,
            source_embedded=info.embedded,
            steps=None if info.few_steps else 33,
        )

    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes a step of the method."""
        t, s, x = problem.grid[i], problem.grid[i + 1], state[TARGET]
        moved, noisy = displaced(problem, x, t, problem.numbers(i)[0])
        target, source = problem.ask(t, Question(moved, problem.target), Question(noisy, problem.source))
        along = velocity(target) - problem.each(velocity(source))
        pull = problem.each(source.x0) - target.x0
        return {SOURCE: problem.x0, TARGET: x + (straight(s)[1] - straight(t)[1]) * along + self.zeta * pull}
