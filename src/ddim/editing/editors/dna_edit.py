"""DNAEdit: samples where the inversion asked, guided to a reference that moves with the edit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..._utils.errors import InputError
from ...core.contracts import Inversion, State
from ...inversion.uni_inv import GUESS, UniInv
from ...solvers.base import move, path_ode, straight, velocity
from ..sides import Question
from .base import SOURCE, TARGET, Editor, EditProblem, Usual, in_proportion, leading, mixed

if TYPE_CHECKING:
    from ...models.info import ModelInfo

REFERENCE = "reference"
"""The entry of the state that holds the moving reference of each target, [N K, ...]."""


@dataclass(frozen=True)
class DNAEdit(Editor):
    """Edits from an inversion that aligns a drawn noise with the image (Xie et al. 2025, arXiv 2506.01430).

    The inversion is ``uni-inv`` with ``start="noise"``. It asks the network at a guess of the next sample, and the
    difference between the guess and the sample that it then finds is known for each step. The edit starts from the
    inverted sample. From x at t to s, with the trajectory x* of the inversion and its velocity v* in this step,

    1. the network is asked under the target's prompt at x plus that difference, for the velocity v_T;
    2. the reference, which is the image at first, moves on with the edit: x_ref += (s - t) (v_T - v*);
    3. the step is Euler's along mvg v_T + (1 - mvg) (x - x_ref) / t ("mobile velocity guidance").

    Under the source's prompt the network is asked where the inversion asked it, and with ``mvg`` = 1 the image comes
    back up to rounding. A smaller ``mvg`` keeps the edit nearer to its reference.

    On other paths than rectified flow, slopes are those of the path's own coordinate (see ``PathODE``), and the
    reference moves along the straight path (see ``straight``).

    The usual settings are those of the paper: for FLUX 28 steps of which the last 24 edit, with the embedded scale 2.5
    and ``mvg`` 0.8; for Stable Diffusion 3.5 the last 27 of 40 with guidance 3.5. The inversion has no guidance.

    Args:
        mvg: the weight of the target's velocity, in [0, 1]. 0 leads to the reference.

    Raises:
        InputError: ``mvg`` lies outside [0, 1].
    """

    mvg: float = 0.8

    name: ClassVar[str] = "dna-edit"
    paper: ClassVar[str] = "Xie et al. 2025, arXiv 2506.01430"
    nfe: ClassVar[int] = 1
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mvg <= 1:
            raise InputError(
                f"{self.mvg:g} lies outside [0, 1]; 0.8 is usual, 1 leaves out the reference.", parameter="mvg"
            )

    def inversion(self) -> Inversion:
        """Returns Uni-Inv with a drawn noise."""
        return UniInv(start="noise")

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the paper's settings for FLUX, or else for Stable Diffusion 3.5, in proportion to the model's own."""
        guidance, embedded = in_proportion(info, 3.5, 2.5)
        if embedded is not None:
            return Usual(embedded=embedded, source_embedded=1.0, strength=24 / 28)
        return Usual(guidance, strength=27 / 40)

    def start(self, problem: EditProblem) -> State:
        """Returns the inverted samples, with the images as references."""
        return {**super().start(problem), REFERENCE: problem.each(problem.x0)}

    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes an Euler step, and moves the reference."""
        t, s, x, each = problem.grid[i], problem.grid[i + 1], state[TARGET], problem.each
        before, after = problem.at(i), problem.at(i + 1)
        source = leading(before, t, after, s)
        (asked,) = problem.ask(t, Question(x + each(asked_at(problem, i) - before), problem.target))
        target = path_ode(problem.grid).moved(asked, x, t)
        data = problem.grid[-1]
        change = (straight(s)[1] - straight(t)[1]) * (velocity(target) - each(velocity(source)))
        # A step that counts in part moves the reference in part too, so that the edit is continuous in its strength.
        reference = state[REFERENCE] + problem.reach.factor(i) * straight(data)[0] * change
        pair = mixed(leading(x, t, reference, data), target, self.mvg)
        return {SOURCE: after, TARGET: move(pair, s), REFERENCE: reference}


def asked_at(problem: EditProblem, i: int) -> Tensor:
    """Returns the sample at ``grid[i]`` at which the inversion asked the network, [N, ...].

    The slope of the inversion's step before led to it from the sample at ``grid[i + 1]``; the first one is stored.
    """
    grid = problem.grid
    if i == grid.steps - 1:
        return problem.extras[GUESS][:, 0].to(problem.x0)
    s, after = grid[i + 1], problem.at(i + 1)
    ode = path_ode(grid)
    slope = ode.slope(leading(after, s, problem.at(i + 2), grid[i + 2]))
    return ode.step(after, slope, s, grid[i])
