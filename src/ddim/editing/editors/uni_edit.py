"""Uni-Edit: samples from a partial inversion along the difference of the velocities under two prompts."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..._utils.errors import InputError
from ...core.contracts import Inversion, OnStep, State
from ...core.prediction import Pair
from ...inversion.uni_inv import UniInv
from ...solvers.base import move, velocity
from ..sides import Question
from .base import SOURCE, TARGET, Editor, EditProblem, Usual, mixed, relative_size

if TYPE_CHECKING:
    from ...models.info import ModelInfo


@dataclass(frozen=True)
class UniEdit(Editor):
    """Edits from a partial inversion, further along the difference of two predictions (Jiao et al. 2025, section 4).

    Uni-Inv inverts the image as far as the strength says (alpha in the paper). Each step then asks the network at the
    same sample under both prompts, for the velocities v_T of the target and v_S of the source. With the difference d =
    v_T - v_S and a mask m, the step is Euler's along

        m v_T + (1 - m) v_S + omega (1 + m) d.

    The mask is the mean of |d| over the channels, scaled to [0, 1] within each sample. So the sample follows the target
    where the prompts disagree, and its source elsewhere. In pairs (x0, eps) the step is the same on every path, because
    the differences of x0, of eps and of the velocity at one sample are in proportion.

    The paper's mask is that of the tokens of a transformer; here it is that of the positions of the latent. Of the
    authors' two programs, one scales over the whole batch and the other takes d with its sign; here each sample has its
    own scale, and |d| is taken, as the paper states it.

    In effect the difference counts from omega times, where m is 0, to 1 + 2 omega times, like a weight of guidance. The
    paper has 5, for FLUX and Stable Diffusion 3. The bundled ``emoji`` models are far overdrawn by it, so that the
    default here is 1.

    The other usual settings are those of the paper: 15 steps, strength 0.6 (0.8 for larger changes), no guidance on
    either side (1 to 2).

    Args:
        omega: the strength of the difference; at least 0. The paper has 5.
        source_guidance: the guidance under the source's prompt; None is the usual one.

    Raises:
        InputError: ``omega`` is negative.
    """

    omega: float = 1.0
    source_guidance: float | None = None

    name: ClassVar[str] = "uni-edit"
    paper: ClassVar[str] = "Jiao et al. 2025, arXiv 2504.13109"
    nfe: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.omega < 0:
            raise InputError(f"{self.omega:g} is negative; 1 is usual, and the paper has 5.", parameter="omega")

    def inversion(self) -> Inversion:
        """Returns Uni-Inv."""
        return UniInv()

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the paper's settings; a model that is distilled to fewer steps keeps its own number."""
        embedded = None if info.embedded is None else 1.0
        return Usual(embedded=embedded, source_embedded=embedded, steps=min(15, info.steps), strength=0.6)

    def edit(self, problem: EditProblem, on_step: OnStep | None = None) -> Tensor:
        """Returns the edited latents. The source is asked at the sample of each target."""
        return super().edit(replace(problem, source=problem.source.repeat(problem.many)), on_step)

    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes an Euler step along the mean of the two velocities and their difference."""
        t, s, x = problem.grid[i], problem.grid[i + 1], state[TARGET]
        target, source = problem.ask(t, Question(x, problem.target), Question(x, problem.source))
        mask = disagreement(target, source)
        share = mask + self.omega * (1 + mask)
        return {SOURCE: problem.at(i + 1), TARGET: move(mixed(source, target, share), s)}


def disagreement(target: Pair, source: Pair) -> Tensor:
    """Returns how much two predictions differ at each position, from 0 to 1 in each sample, [M, 1, H, W]."""
    return relative_size(velocity(target) - velocity(source))
