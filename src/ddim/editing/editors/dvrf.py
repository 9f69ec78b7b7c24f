"""DVRF: moves the image by gradients, which are differences of the model's errors under two prompts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ..._utils.errors import InputError, UnknownName, is_number
from ...core.contracts import State
from ...solvers.base import straight, velocity
from ..sides import Question
from .base import SOURCE, TARGET, Editor, EditProblem, Usual, check_draws, in_proportion

if TYPE_CHECKING:
    from ...models.info import ModelInfo

SHIFTS, RATES = ("progressive", "constant"), ("even", "grid")


@dataclass(frozen=True)
class DVRF(Editor):
    """Moves the image down the gradients of delta velocity distillation (Beaudouin et al. 2025, arXiv 2509.05342).

    Each step noises both images to a node of the grid with the same noise eps. The noise of the edited image x has a
    shift along the edit so far: z_source = (1 - t) x0 + t eps, and z_target = (1 - t) x + t (eps + c (x - x0)). The
    gradient is the difference of the errors of the velocity under the two prompts (Eq. 8):
    g = v(z_target; target) - v(z_source; source) + (1 - c) (x - x0), and the step is x -= lr g. The shift c grows from
    0 to ``eta`` over the steps. On other paths than rectified flow see ``straight``.

    Two methods are special cases. With eta = 1, a constant shift and the rates of the grid, the step is that of
    ``FlowEdit``. With eta = 0, g is the gradient of the delta denoising score (Hertz et al. 2023, arXiv 2304.07090),
    the difference of the two predicted eps, times 1 / (1 - t). An edit to the source's own prompt at equal guidance
    returns the image to the bit.

    The usual guidance is that of the paper for Stable Diffusion 3, 16.5 and 6 for the source, in 50 steps. For other
    models it keeps the same proportion to the model's usual guidance. The paper has no scales for models whose guidance
    is distilled; they have those of FlowEdit, 5.5 and 1.5. Models of few steps keep their number of steps.

    Args:
        source_guidance: the guidance under the source's prompt; None is the usual one.
        eta: the shift at the end, at least 0.
        shift: ``"progressive"``: c is eta i / S in step i of S steps; ``"constant"``: c is eta in all steps.
        rate: the sum of the learning rates of all steps, above 0. The paper's rate of 0.02 in 50 steps is 1.
        rates: how the steps share it: ``"even"``, or ``"grid"``: in proportion to the width of the step.
        draws_per_step: the number of noises over which the gradient is averaged.

    Raises:
        InputError: a value is out of range or unknown.
    """

    source_guidance: float | None = None
    eta: float = 1.0
    shift: str = "progressive"
    rate: float = 1.0
    rates: str = "even"
    draws_per_step: int = 1

    name: ClassVar[str] = "dvrf"
    paper: ClassVar[str] = "Beaudouin et al. 2025, arXiv 2509.05342"
    nfe: ClassVar[int] = 2
    self_edit: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.eta) or self.eta < 0:
            raise InputError(f"{self.eta!r} is not a number of at least 0; 1 is usual.", parameter="eta")
        if not is_number(self.rate) or self.rate <= 0:
            raise InputError(f"{self.rate!r} is not a number above 0; 1 is usual.", parameter="rate")
        if self.shift not in SHIFTS:
            raise UnknownName("shift", str(self.shift), SHIFTS, parameter="shift")
        if self.rates not in RATES:
            raise UnknownName("rates", str(self.rates), RATES, parameter="rates")
        check_draws(self.draws_per_step)

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the paper's settings, in proportion to the usual guidance of the model."""
        (guidance, embedded), (source, source_embedded) = in_proportion(info, 16.5, 5.5), in_proportion(info, 6, 1.5)
        return Usual(guidance, source, embedded, source_embedded, steps=None if info.few_steps else 50)

    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes a step of gradient descent."""
        t, s, x = problem.grid[i], problem.grid[i + 1], state[TARGET]
        place, steps = problem.reach.before + i, problem.reach.before + problem.grid.steps
        c = self.eta * (place / steps if self.shift == "progressive" else 1.0)
        each, gone = problem.each(problem.x0), x - problem.each(problem.x0)
        slopes: list[torch.Tensor] = []
        for k in problem.numbers(i, self.draws_per_step):
            noise = problem.noise(problem.x0, k)
            noisy = t.alpha * problem.x0 + t.sigma * noise
            # alpha x + sigma (eps + c (x - x0)), in a form that is z_source to the bit where x = x0
            moved = t.alpha * each + t.sigma * problem.each(noise) + (t.alpha + c * t.sigma) * gone
            target, source = problem.ask(t, Question(moved, problem.target), Question(noisy, problem.source))
            slopes.append(velocity(target) - problem.each(velocity(source)))
        share = 1 / steps if self.rates == "even" else straight(t)[1] - straight(s)[1]
        slope = torch.stack(slopes).mean(0) + (1 - c) * gone
        return {SOURCE: problem.x0, TARGET: x - self.rate * share * slope}
