"""SteerFlow: follows the trajectory of an inversion, and leaves it where and when the target's velocity agrees."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, max_pool2d

from ..._utils.errors import InputError
from ..._utils.tensors import per_sample, quantile_of
from ...core.contracts import Inversion, State
from ...inversion.uni_inv import UniInv
from ...solvers.base import advanced, straight, velocity
from ..sides import Question
from .base import SOURCE, TARGET, Editor, EditProblem, Usual, in_proportion, leading, relative_size

if TYPE_CHECKING:
    from ...models.info import ModelInfo


@dataclass(frozen=True)
class SteerFlow(Editor):
    """Steers the trajectory of an inversion towards the target (Dao et al. 2026, arXiv 2604.01715).

    The inversion is ``uni-inv``. From x at t to s, the source's velocity v_S is that of its stored trajectory, v_T is
    the network's at x under the target's prompt, and the step is Euler's along

        v_S + m (1 - s^power) cos(v_T, v_S) (v_T - v_S),

    where s is the time of rectified flow, from 1 at the noise to 0 at the data (see ``straight``), and the cosine is
    that of the whole sample. So an edit follows its source while there is much noise, and wherever the mask m is 0.
    Where the cosine is far below 1 near the data, as in large changes under guidance, the noise of the change is not
    removed, and the edit is grainy; ``cosine=False`` takes 1 in its place.

    The mask is where the two velocities differ most. The mean of |v_T - v_S| over the channels is scaled to [0, 1]
    within each sample; its largest value in the square of ``dilation`` positions around each one is the size, and m =
    sigmoid(temperature (size - threshold)), where the threshold is the ``quantile`` of the values. The paper takes the
    larger of this and of a segmentation by another network, which is not part of this library; ``mask=`` of ``edit``
    limits the edit to a region that you know.

    The usual settings are those of the paper: for FLUX 15 steps, the embedded scale 3.5 and the power 4.5; for Stable
    Diffusion 3 30 steps, guidance 6.5 and the power 5.5. The default power lies between the two. The inversion has no
    guidance.

    Args:
        power: the exponent; a larger one leaves the source sooner. Above 0.
        quantile: the quantile of the threshold, in [0, 1]; None edits everywhere.
        temperature: the steepness of the mask's edge; above 0.
        dilation: the side of the squares in positions of the latent; odd, and 1 spreads nothing.
        cosine: whether the change is multiplied by the cosine.

    Raises:
        InputError: a value is out of range.
    """

    power: float = 5.0
    quantile: float | None = 0.95
    temperature: float = 15.0
    dilation: int = 5
    cosine: bool = True

    name: ClassVar[str] = "steer-flow"
    paper: ClassVar[str] = "Dao et al. 2026, arXiv 2604.01715"
    nfe: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, usual in {"power": 5, "temperature": 15}.items():
            if getattr(self, name) <= 0:
                raise InputError(f"{getattr(self, name):g} is not above 0; {usual} is usual.", parameter=name)
        if self.quantile is not None and not 0 <= self.quantile <= 1:
            raise InputError(f"{self.quantile:g} lies outside [0, 1]; 0.95 is usual.", parameter="quantile")
        if self.dilation < 1 or self.dilation % 2 == 0:
            raise InputError(f"{self.dilation} is not an odd number from 1; 5 is usual.", parameter="dilation")

    def inversion(self) -> Inversion:
        """Returns Uni-Inv."""
        return UniInv()

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the paper's settings for FLUX, or else for Stable Diffusion 3, in proportion to the model's own."""
        guidance, embedded = in_proportion(info, 6.5, 3.5)
        if embedded is not None:
            return Usual(embedded=embedded, source_embedded=1.0, steps=min(15, info.steps))
        return Usual(guidance, steps=min(30, info.steps))

    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes an Euler step along the steered velocity."""
        t, s, x = problem.grid[i], problem.grid[i + 1], state[TARGET]
        after = problem.at(i + 1)
        source = problem.each(velocity(leading(problem.at(i), t, after, s)))
        (pair,) = problem.ask(t, Question(x, problem.target))
        change = velocity(pair) - source
        weight = (1 - straight(s)[1] ** self.power) * self._mask(change)
        if self.cosine:
            agreement = cosine_similarity((source + change).flatten(1), source.flatten(1), 1)
            weight = weight * per_sample(agreement, x)
        return {SOURCE: after, TARGET: advanced(x, source + weight * change, t, s)}

    def _mask(self, change: Tensor) -> Tensor | float:
        """Returns where the edit may act, [M, 1, H, W] in [0, 1]."""
        if self.quantile is None:
            return 1.0
        size = relative_size(change)
        threshold = quantile_of(size, self.quantile)
        spread = max_pool2d(size, self.dilation, stride=1, padding=self.dilation // 2)
        return torch.sigmoid(self.temperature * (spread - threshold))
