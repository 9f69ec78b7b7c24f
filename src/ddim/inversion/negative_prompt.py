"""Negative-prompt inversion: the source's prompt stands in for the null-text, and nothing is tuned."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.grid import Grid
from ..core.guidance import NULL
from ..core.solve import OnStep
from .base import InversionProblem, InversionResult, need_words
from .ddim import DDIMInversion
from .plain import ByDDIM, Walks


@dataclass(frozen=True)
class NegativePrompt(Walks, ByDDIM):
    """DDIM inversion at weight 1; forwards, the null embedding is the source prompt's (Miyake et al. 2023, section 4).

    Both predictions are then the same and the weight has no say: the source comes back as it does from DDIM inversion
    at weight 1, and an edit is guided away from the source's prompt.

    Args:
        toward_empty: in [0, 1], how far the null embedding lies from the prompt's towards the negative (empty) one's,
            token by token along the arc between them; above 0 the source comes back less well.
    """

    toward_empty: float = 0.0

    name: str = field(default="negative-prompt", init=False, repr=False)
    exact: bool = field(default=False, init=False, repr=False)
    paper: str = field(default="Miyake et al. 2023, arXiv 2305.16807", init=False, repr=False)
    nfe: int = field(default=1, init=False, repr=False)
    order: int = field(default=1, init=False, repr=False)
    back: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.toward_empty <= 1:
            raise InputError(
                f"{self.toward_empty:g} lies outside [0, 1]; 0 is the prompt, 1 the negative prompt.",
                parameter="toward_empty",
            )

    def walk(self, scene: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None = None) -> InversionResult:
        """x at the noisy end, and another ``cond["null"]``.

        Raises:
            InputError: a model without text.
        """
        words, empty = need_words(scene, self.name)
        state = DDIMInversion().invert(scene.guided(self.back), x0, grid, on_step)
        return InversionResult(state, grid, {**scene.cond, NULL: along_arc(words, empty, self.toward_empty)}, {})


def along_arc(a: Tensor, b: Tensor, part: float) -> Tensor:
    """Spherical interpolation over the last dimension, token by token; a straight line where two point the same way.

    Args:
        a, b: [..., D].
        part: in [0, 1]; 0 is a and 1 is b, bit for bit.
    """
    if part in (0, 1):
        return (a, b)[int(part)].clone()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).unsqueeze(-1)
    angle = cosine.acos()
    sine = angle.sin()
    bent = (((1 - part) * angle).sin() * a + (part * angle).sin() * b) / sine.clamp(min=1e-12)
    return torch.where(sine > 1e-3, bent, (1 - part) * a + part * b)
