"""Negative-prompt inversion: replaces the optimized embedding of null-text inversion by that of the source prompt."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.conditioning import POOLED, TEXT, TEXT_MASK, Conditioning, PromptConditioning
from ..core.contracts import InversionProblem, InversionResult, OnStep
from ..core.grid import Grid
from .base import ByDDIM
from .ddim import DDIMInversion


@dataclass(frozen=True)
class NegativePrompt(ByDDIM):
    """DDIM inversion at guidance weight 1, sampled with the source prompt as the unconditional embedding.

    Source: Miyake et al. 2023, section 4. Both branches of guidance then predict the same, so that the weight has no
    effect: the source is reconstructed as by DDIM inversion at weight 1. An edit is guided away from the source prompt.

    Args:
        toward_empty: in [0, 1]: moves the unconditional embedding from that of the source prompt towards that of the
            negative (empty) prompt, token by token, along the arc between them. Above 0 the reconstruction is worse.

    Raises:
        InputError: ``toward_empty`` lies outside [0, 1].
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
        super().__post_init__()
        if not 0 <= self.toward_empty <= 1:
            raise InputError(
                f"{self.toward_empty:g} lies outside [0, 1]; 0 is the prompt, 1 the negative prompt.",
                parameter="toward_empty",
            )

    @property
    def requires(self) -> str:
        """``"text"`` if ``toward_empty`` is set: only embeddings have something between them."""
        return "text" if self.toward_empty else self.needs

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Returns x at the noisy end, and the conditions with the new unconditional branch.

        Raises:
            InputError: the model has no conditions, or ``toward_empty`` is set and the model takes no prompts.
        """
        cond, uncond = problem.both_conditions(self)
        masks = [c.tensors[TEXT_MASK] for c in (cond, uncond) if TEXT_MASK in c]
        if self.toward_empty and masks and not torch.equal(*masks):
            raise InputError(
                f"{self.toward_empty:g} mixes the tokens of two prompts one by one, and here the prompts have "
                "different numbers of tokens; use 0.",
                parameter="toward_empty",
            )
        done = DDIMInversion().invert(replace(problem, inversion_guidance=1.0), x0, grid, on_step)
        return InversionResult(done.state, grid, PromptConditioning(cond, self._between(cond, uncond)), {})

    def _between(self, cond: Conditioning, uncond: Conditioning) -> Conditioning:
        """Returns ``cond`` with its embeddings moved towards those of ``uncond`` by ``toward_empty``."""
        parts = [name for name in (TEXT, POOLED) if name in cond]
        return cond.replace(
            **{name: along_arc(cond.tensors[name], uncond.tensors[name], self.toward_empty) for name in parts}
        )


def along_arc(a: Tensor, b: Tensor, part: float) -> Tensor:
    """Interpolates spherically over the last dimension, so that each token has its own angle.

    If two vectors are nearly parallel or opposite, the interpolation is linear.

    Args:
        a, b: two tensors [..., D] of the same shape.
        part: the position on the arc, in [0, 1]; 0 returns a and 1 returns b, bit for bit.
    """
    if part in (0, 1):
        return (a, b)[int(part)].clone()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).unsqueeze(-1)
    angle = cosine.acos()
    sine = angle.sin()
    bent = (((1 - part) * angle).sin() * a + (part * angle).sin() * b) / sine.clamp(min=1e-12)
    return torch.where(sine > 1e-3, bent, (1 - part) * a + part * b)
