"""The plain edit of an instruction editor: sampling from noise, with the image as the reference picture."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ...core.conditioning import REFERENCE, PromptConditioning
from ...core.contracts import OnStep, State
from ...core.path import Node
from ...core.prediction import Pair
from ...solvers.base import move
from ..sides import Question
from .base import SOURCE, TARGET, Editor, EditProblem, Usual

if TYPE_CHECKING:
    from ...models.info import ModelInfo


@dataclass(frozen=True)
class Instruct(Editor):
    """Samples under an instruction, while the network looks at the image (FLUX.1 Kontext, arXiv 2506.15742).

    The prompt of the target says what to change, such as "make the hat red". Each image is the reference of its own
    targets, whatever ``model.reference`` is. The targets start from the image noised to the first node of the edit,
    which at strength 1 is noise, and are sampled by Euler's method. Nothing but the network keeps what it was not asked
    to change; ``velo-edit`` and a mask do. Under a mask, the source has the same noise.

    The usual settings are those of the model. The prompt of the source is not used, and may be left out.

    A reference has the size of its image, which is never resized; FLUX.1 Kontext was trained on references of about a
    million pixels.
    """

    name: ClassVar[str] = "instruct"
    paper: ClassVar[str] = "Black Forest Labs et al. 2025, arXiv 2506.15742"
    nfe: ClassVar[int] = 1
    needs: ClassVar[str] = ""
    draws: ClassVar[bool] = True
    looks: ClassVar[bool] = True

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the usual settings of the model."""
        return Usual(info.guidance, embedded=info.embedded, source_embedded=info.embedded)

    def edit(self, problem: EditProblem, on_step: OnStep | None = None) -> Tensor:
        """Returns the edited latents, with each image as the reference of its targets."""
        prompts, rows = problem.target.prompts, {REFERENCE: problem.each(problem.x0)}
        uncond = None if prompts.uncond is None else prompts.uncond.replace(**rows)
        target = replace(problem.target, prompts=PromptConditioning(prompts.cond.replace(**rows), uncond))
        return super().edit(replace(problem, target=target), on_step)

    def start(self, problem: EditProblem) -> State:
        """Returns the noised images."""
        noisy = self._noised(problem, problem.grid[problem.reach.begin])
        return {SOURCE: noisy, TARGET: problem.each(noisy)}

    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Makes an Euler step."""
        t, s, x = problem.grid[i], problem.grid[i + 1], state[TARGET]
        (pair,) = problem.ask(t, Question(x, problem.target))
        return {SOURCE: self._noised(problem, s), TARGET: move(self.kept(problem, pair, x, i), s)}

    def kept(self, problem: EditProblem, pair: Pair, x: Tensor, i: int) -> Pair:
        """Returns the pair that makes step i, from the one that the network predicts at x; here it is the same."""
        return pair

    def _noised(self, problem: EditProblem, node: Node) -> Tensor:
        """Returns the images at a node, with one noise for all nodes."""
        return node.alpha * problem.x0 + node.sigma * problem.noise(problem.x0, 0)
