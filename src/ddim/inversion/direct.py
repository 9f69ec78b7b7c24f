"""Direct inversion: the source is put back on its pivot after every step forward."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.contracts import InversionProblem, InversionResult, OnStep
from ..core.grid import Grid
from .base import ByDDIM, pivot_of


@dataclass(frozen=True)
class DirectInversion(ByDDIM):
    """DDIM inversion at weight 1, all of whose nodes are kept (Ju et al. 2024, section 4).

    The way forward under any weight ends each step on the pivot, so the image comes back whatever the guidance; the
    paper adds the difference to the source's branch, which is the same. Whatever is edited beside the source starts
    from the pivot's noisy end and is told what the source's steps see. Models without text take it too.
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
        """The pivot's noisy end, and the rest of it as ``extras["pivot"]``, [N, S, ...]; the last entry is x0."""
        pivot = pivot_of(problem, x0, grid, on_step=on_step)
        return InversionResult({"x": pivot[:, 0]}, grid, problem.prompts, {"pivot": pivot[:, 1:]})
