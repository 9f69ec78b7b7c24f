"""Negative-prompt inversion: the source's prompt stands in for the null-text, and nothing is tuned."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.conditioning import POOLED, TEXT, Conditioning, PromptConditioning
from ..core.contracts import InversionProblem, InversionResult, OnStep
from ..core.grid import Grid
from .base import ByDDIM
from .ddim import DDIMInversion


@dataclass(frozen=True)
class NegativePrompt(ByDDIM):
    """DDIM inversion at weight 1; forwards, the null embedding is the source prompt's (Miyake et al. 2023, section 4).

    Both predictions are then the same and the weight has no say: the source comes back as it does from DDIM inversion
    at weight 1, and an edit is guided away from the source's prompt.

    Args:
        toward_empty: in [0, 1], how far the null embedding lies from the prompt's towards the negative (empty) one's,
            token by token along the arc between them; above 0 the source comes back less well.
    """

    toward_empty: float = 0.0

    name: ClassVar[str] = "negative-prompt"
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 24.0
    paper: ClassVar[str] = "Miyake et al. 2023, arXiv 2305.16807"
    needs: ClassVar[str] = "conditions"
    nfe: ClassVar[int] = 1
    order: ClassVar[int] = 1
    inversion_guidance: ClassVar[float | None] = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.toward_empty <= 1:
            raise InputError(
                f"{self.toward_empty:g} lies outside [0, 1]; 0 is the prompt, 1 the negative prompt.",
                parameter="toward_empty",
            )

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """x at the noisy end, and another unconditional branch.

        Raises:
            InputError: a model without conditions; ``toward_empty`` for one that takes no prompts.
        """
        cond, uncond = problem.prompts.cond, problem.prompts.uncond
        if uncond is None:
            raise InputError(
                f"{self.name!r} puts the source's condition in place of none, and this model has none of either; use "
                "'ddim' or 'belm'.",
                parameter="method",
            )
        if self.toward_empty:
            problem.need_text(self.name)
        done = DDIMInversion().invert(replace(problem, inversion_guidance=1.0), x0, grid, on_step)
        return InversionResult(done.state, grid, PromptConditioning(cond, self._between(cond, uncond)), {})

    def _between(self, cond: Conditioning, uncond: Conditioning) -> Conditioning:
        """The condition itself, its embeddings moved towards the unconditional ones."""
        parts = [name for name in (TEXT, POOLED) if name in cond]
        return cond.replace(
            **{name: along_arc(cond.tensors[name], uncond.tensors[name], self.toward_empty) for name in parts}
        )


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
