"""Direct inversion: sampling sets the source back to its pivot after every step."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.contracts import InversionProblem, InversionResult, OnStep
from ..core.grid import Grid
from .base import ByDDIM, pivot_of


@dataclass(frozen=True)
class DirectInversion(ByDDIM):
    """DDIM inversion at guidance weight 1 that stores the sample at every node, the pivot (Ju et al. 2024, section 4).

    Sampling replaces the sample of the source by the pivot after each step, so that the image is reconstructed exactly
    with any guidance. The paper adds the difference to the pivot instead, which has the same result. An edit samples
    its targets from the same latent, beside the source. The method also works for models without text.
    ``inversion.extras`` compares it with ``direct-edit`` and ``edit-friendly``.
    """

    name: ClassVar[str] = "direct"
    exact: ClassVar[bool] = True
    paper: ClassVar[str] = "Ju et al. 2024, arXiv 2310.01506"
    nfe: ClassVar[int] = 1
    order: ClassVar[int] = 1
    inversion_guidance: ClassVar[float | None] = 1.0
    keeps: ClassVar[tuple[str, ...]] = ("pivot",)
    floor_db: ClassVar[float] = math.inf

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Returns the noisy end of the pivot, and its other nodes as ``extras["pivot"]``, [N, S, ...].

        The last node of the pivot is x0.
        """
        pivot = pivot_of(problem, x0, grid, on_step=on_step)
        return InversionResult({"x": pivot[:, 0]}, grid, problem.prompts, {"pivot": pivot[:, 1:]})
