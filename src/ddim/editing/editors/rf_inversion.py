"""RF-Inversion's edit: a controller draws the sample towards the image in a part of the steps."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..._utils.errors import InputError
from ...core.contracts import Inversion, State
from ...core.process import eta_std
from ...inversion.rf_inversion import RFInversion
from ...solvers.base import move
from ..sides import Question
from .base import SOURCE, TARGET, Editor, EditProblem, Usual, leading, mixed

if TYPE_CHECKING:
    from ...models.info import ModelInfo


@dataclass(frozen=True)
class RFInversionEdit(Editor):
    """Samples under the target's prompt, while a controller draws the sample towards the image (Rout et al. 2024).

    The inversion is ``rf-inversion``, whose own controller leads to a drawn noise. It has no guidance and, as in the
    paper, no prompt, if you leave out the source's prompt. The edit is Euler's method along

        v + eta ((x - x0) / sigma - v)

    with the velocity v under the target's prompt and the image x0: with ``eta`` = 1, the line that leads straight to
    the image. The controller acts from ``begin`` to ``end``, as fractions of the steps; a step that lies in the window
    in part has a part of ``eta``. In pairs (x0, eps) the formula is the same on every path. The network is called with
    the timesteps of the grid that the step sizes come from.

    With ``sde`` the steps also draw noise (Eq. 17), which is that of the process dx = -x / (1 - sigma) dsigma +
    sqrt(2 sigma / (1 - sigma) dsigma) dW reversed. Its drift and noise are integrated exactly for the predicted (x0,
    eps), which is the step of DDPM. The last step draws none, so that no noise is left in the image. Where there is no
    signal the noise would be infinite, and the step is that of the ODE, as in the paper.

    The usual settings are those of the paper for FLUX: 28 steps, ``eta`` 0.9 in the first 7 of them, the embedded scale
    3.5, and 0 for the inversion. For a model with classifier-free guidance the weight is the model's usual one.

    Args:
        eta: the strength of the controller, in [0, 1].
        begin, end: where the controller acts, as fractions of the steps, 0 <= begin < end <= 1.
        decay: the power with which ``eta`` decreases over the steps: in the step that begins at the fraction p it is
            ``eta (1 - p)^decay``; 0 keeps it.
        gamma: the strength of the controller of the inversion, in [0, 1].
        sde: whether the steps draw noise.

    Raises:
        InputError: a value is out of range.
    """

    eta: float = 0.9
    begin: float = 0.0
    end: float = 0.25
    decay: float = 0.0
    gamma: float = 0.5
    sde: bool = False

    name: ClassVar[str] = "rf-inversion"
    paper: ClassVar[str] = "Rout et al. 2024, arXiv 2410.10792"
    nfe: ClassVar[int] = 1
    needs: ClassVar[str] = ""
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, usual in {"eta": 0.9, "gamma": 0.5}.items():
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{getattr(self, name):g} lies outside [0, 1]; {usual} is usual.", parameter=name)
        if not 0 <= self.begin < self.end <= 1:
            raise InputError(
                f"({self.begin:g}, {self.end:g}) is no part of [0, 1]; (0, 0.25) is usual.", parameter="end"
            )
        if self.decay < 0:
            raise InputError(f"{self.decay:g} is negative; 0 keeps eta as it is.", parameter="decay")

    def inversion(self) -> Inversion:
        """Returns the inversion of RF-Inversion."""
        return RFInversion(self.gamma)

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the paper's settings for FLUX, or else the model's usual guidance."""
        if info.embedded is not None:
            return Usual(embedded=info.embedded, source_embedded=0.0)
        return Usual(info.guidance)

    def strength_at(self, problem: EditProblem, i: int) -> float:
        """Returns the strength of the controller in step i."""
        steps, reach = problem.grid.steps, problem.reach
        part = reach.inside(i, steps, self.begin, self.end)
        return part * self.eta * (1 - reach.elapsed(i, steps)) ** self.decay

    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes a step along the controlled velocity."""
        t, s, x, grid = problem.grid[i], problem.grid[i + 1], state[TARGET], problem.grid
        (pair,) = problem.ask(t, Question(x, problem.target))
        pair = mixed(pair, leading(x, t, problem.each(problem.x0), grid[-1]), self.strength_at(problem, i))
        noisy = self.sde and t.alpha > 0 and i < grid.steps - 1
        std = eta_std(1.0, t, s) if noisy else 0.0
        after = move(pair, s, std)
        if std > 0:
            after = after + std * problem.each(problem.noise(problem.x0, problem.numbers(i)[0]))
        return {SOURCE: problem.at(i + 1), TARGET: after}
