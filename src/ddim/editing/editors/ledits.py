"""LEDITS++: adds the guidance of several concepts to a source, each where it acts most."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..._utils.errors import InputError, is_number
from ..._utils.tensors import per_sample, quantile_of
from ...core.conditioning import PromptConditioning
from ...core.contracts import Inversion
from ...core.guidance import Guidance
from ...core.path import Node
from ...core.prediction import Pair
from ...inversion.edit_friendly import EditFriendly
from ..sides import Question, Side, ask
from .base import Concept, EditProblem, Usual
from .noise_maps import OnNoiseMaps

if TYPE_CHECKING:
    from ...models.info import ModelInfo

_SCALED = re.compile(r"\(([^()]*?)\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\)")


@dataclass(frozen=True)
class Ledits(OnNoiseMaps):
    """Edits by one or more concepts (Brack et al. 2024, arXiv 2311.16711).

    The target prompt is a list of concepts, separated by ``;``, such as ``"sunglasses; (beard:-1)"``. It does not
    describe the whole image: concepts are added to the source, and those with a negative factor are removed. The
    factor multiplies the guidance of ``edit``; without brackets it is 1.

    The image is inverted by ``EditFriendly``, by default without a prompt. The target y is sampled from the noise maps
    of its source with
    eps = eps(y; empty) + sum over the concepts of mask * guidance * factor * (eps(y; concept) - eps(y; empty)). The
    mask of a concept is 1 where the size of its difference, summed over the channels, is at least its quantile
    ``threshold`` in the image, in each step anew. The paper also intersects the masks with cross-attention maps,
    has a second-order sampler, and sets the last three noise maps to zero; here only the last is, and there is neither
    of the others. The last step adds what the network's image lacks of the source,
    so that without a concept the target is the source.

    The usual guidance is that of the paper for Stable Diffusion, 5 in the last 44 of 50 steps. For other models it
    keeps the same proportion to the model's usual guidance, and is at least 1.

    Args:
        source_guidance: the guidance under the source's prompt during the inversion. 0 ignores the prompt, and the
            authors have 3.5 where there is one. Above 0, what the prompt says of the image fades outside the masks too.
            None is 0, or 1 for a model whose usual guidance is 1, which was distilled to do without guidance.
        threshold: the quantile, in [0, 1): the share of the image that a concept does not change in a step.
        sampler, eta: see ``EditFriendly``.

    Raises:
        InputError: an option is out of range or unknown.
    """

    source_guidance: float | None = None
    threshold: float = 0.9
    sampler: str = "ddim"
    eta: float = 1.0

    name: ClassVar[str] = "ledits++"
    paper: ClassVar[str] = "Brack et al. 2024, arXiv 2311.16711"
    nfe: ClassVar[int] = 3
    needs: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inversion()
        if self.source_guidance is not None and not is_number(self.source_guidance):
            raise InputError(
                f"{self.source_guidance!r} is not a number; 0 ignores the prompt.", parameter="source_guidance"
            )
        if not is_number(self.threshold) or not 0 <= self.threshold < 1:
            raise InputError(f"{self.threshold!r} lies outside [0, 1); 0.9 is usual.", parameter="threshold")

    def inversion(self) -> Inversion:
        """Returns edit-friendly inversion with the options of the editor."""
        return EditFriendly(self.eta, 0.0, self.sampler)

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the paper's settings, in proportion to the usual guidance of the model."""
        source = 1.0 if info.guidance == 1 else 0.0
        return Usual(max(info.guidance * 5 / 7.5, 1.0), source, info.embedded, info.embedded, strength=44 / 50)

    def guidances(self, info: "ModelInfo", asked: float | Guidance | None) -> tuple[Guidance, Guidance]:
        """See ``Editor.guidances``. Raises InputError if the guidance is rescaled or proximal."""
        _, target = super().guidances(info, asked)
        idle = {"rescale": target.rescale, "proximal": target.proximal and target.proximal.kind}
        for name, value in idle.items():
            if value:
                raise InputError(f"{value} does not go with {self.name!r}; leave it out.", parameter=name)
        weight = self.usual(info).source_guidance if self.source_guidance is None else self.source_guidance
        return replace(target, weight=weight, interval=(0.0, 1.0)), target

    def check(self, info: "ModelInfo") -> None:
        """Raises InputError if the model has no condition that guidance leads away from."""
        super().check(info)
        if "cfg" not in info.guidance_kinds:
            raise InputError(
                f"{self.name!r} adds classifier-free guidance, and the model {info.name!r} has none; use 'flow-edit'.",
                parameter="method",
            )

    def concepts(self, prompt: str) -> tuple[Concept, ...]:
        """Splits the prompt at ``;`` and reads the factors. Raises InputError for an empty concept in a list."""
        pieces = [piece.strip() for piece in prompt.split(";")]
        if len(pieces) > 1 and not all(pieces):
            raise InputError(
                f"{prompt!r} has an empty concept; write a list as 'sunglasses; (beard:-1)'.", parameter="prompt"
            )
        found = [(piece, _SCALED.fullmatch(piece)) for piece in pieces]
        return tuple(Concept(m[1].strip(), float(m[2])) if m and m[1].strip() else Concept(p) for p, m in found)

    def pairs(self, problem: EditProblem, x: Tensor, source: Tensor, node: Node) -> tuple[Pair, Pair]:
        """Asks for the sources under their prompt, and for the targets under the empty one and each concept."""
        images = len(problem.x0)
        plain = Guidance(embedded=problem.target.guidance.embedded, batched_cfg=problem.target.guidance.batched_cfg)
        empty = Side(PromptConditioning(problem.target.branch("uncond")), plain, images)
        questions = [Question(x, side) for side in (empty, *(side.at(1.0) for side, _ in problem.concepts))]
        own, away, *pairs = ask(problem.network, node, Question(source, problem.source), *questions, call=problem.call)
        x0, eps = away
        if problem.target.guidance.covers(node, problem.network.schedule.path.t_max):
            for pair, (_, factors) in zip(pairs, problem.concepts, strict=True):
                # That of x0 is a multiple of that of eps, and not 0 where there is no signal.
                difference = pair.x0 - away.x0
                scale = _mask(difference, self.threshold) * (problem.target.guidance.weight * per_sample(factors, x))
                x0, eps = x0 + scale * difference, eps + scale * (pair.eps - away.eps)
        if not problem.hold.acts:
            return Pair(x0, eps), own
        return problem.hold(Pair(x0, eps), x, node), problem.hold(own, source, node)


def _mask(difference: Tensor, quantile: float) -> Tensor:
    """Returns a mask [M, 1, ...] of the elements whose size, summed over the channels, is at least its quantile."""
    size = difference.abs().sum(1, keepdim=True)
    return (size >= quantile_of(size, quantile)).to(difference)
