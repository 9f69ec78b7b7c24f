"""TurboEdit: edit-friendly noise maps with shifted noise, and guidance from the source's prompt to the target's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ...core.contracts import Inversion
from ...core.path import Node
from ...core.prediction import Pair
from ...inversion.edit_friendly import EditFriendly
from ..sides import Question
from .base import EditProblem, Usual
from .noise_maps import OnNoiseMaps

if TYPE_CHECKING:
    from ...models.info import ModelInfo


@dataclass(frozen=True)
class TurboEdit(OnNoiseMaps):
    """Edits with models of few steps by noise maps (Deutch et al. 2024, arXiv 2408.00735).

    The image is inverted by ``EditFriendly``, whose noised images have less noise than the network is told (section
    4.1). The source x and the target y are sampled from the same noise maps. With the mean mu of a step, the target's
    is y' = x' + [mu(y; source) - mu(x; source)] + w [mu(y; target) - mu(y; source)] ("pseudo-guidance", section 4.2).

    The guidance of ``edit`` is w: it leads away from the source's prompt and not from an empty or a negative one, so
    that no other classifier-free guidance is used. An edit to the source's own prompt returns the image to the bit. The
    last step adds what the network's image lacks of the source, which the authors' code leaves out; the norm of their
    last noise map is at most 15.5, and here that map is zero.

    The usual settings are those of the paper for SDXL-Turbo: w = 1.5 in the last 4 of 5 steps. For models of many
    steps, of which the paper says nothing, they are half the way from 1 to the model's usual guidance, and the last
    64 % of the steps, as for ``edit-friendly``. There no shift is needed: set ``noise_shift`` to 0.

    Args:
        sampler, eta, noise_shift: see ``EditFriendly``. Models that sample with ``lcm`` or ``tcd`` need that sampler.

    Raises:
        InputError: an option is out of range or unknown.
    """

    sampler: str = "ddim"
    eta: float = 1.0
    noise_shift: float = 0.2

    name: ClassVar[str] = "turbo-edit"
    paper: ClassVar[str] = "Deutch et al. 2024, arXiv 2408.00735"
    nfe: ClassVar[int] = 3
    self_edit: ClassVar[bool] = True
    from_source: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inversion()

    def inversion(self) -> Inversion:
        """Returns edit-friendly inversion with the options of the editor."""
        return EditFriendly(self.eta, 0.0, self.sampler, self.noise_shift)

    def usual(self, info: "ModelInfo") -> Usual:
        """Returns the paper's settings for models of few steps."""
        both = info.embedded
        if info.few_steps:
            return Usual(1.5, embedded=both, source_embedded=both, steps=5, strength=0.8)
        return Usual((1 + info.guidance) / 2, embedded=both, source_embedded=both, strength=0.64)

    def pairs(self, problem: EditProblem, x: Tensor, source: Tensor, node: Node) -> tuple[Pair, Pair]:
        """Asks for the targets under both prompts, and for the sources."""
        target, own = problem.ask(node, Question(x, problem.target), Question(source, problem.source))
        return target, own
