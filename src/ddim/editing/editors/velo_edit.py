"""VeloEdit: an instruction edit that keeps what it was not asked to change."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..._utils.errors import InputError
from ...core.prediction import Pair
from ...solvers.base import velocity
from .base import EditProblem, leading, mixed
from .instruct import Instruct


@dataclass(frozen=True)
class VeloEdit(Instruct):
    """Replaces the velocity by the one that leads to the image, where the two are alike (Li et al. 2026).

    The edit is that of ``instruct``. In its first steps, the velocity v that the network predicts at x is compared,
    number by number, with v_ref, the one that leads straight to the image x0. On rectified flow v_ref is (x - x0) /
    sigma, and the similarity is

        |v_ref| / (|v_ref| + |v - v_ref|).

    Where it reaches ``threshold``, v_ref replaces v. Elsewhere the step is along ``hold`` v_ref + (1 - ``hold``) v. The
    first steps decide what the image shows, so that what they keep is usually kept to the end. There is no inversion
    and no mask, and no network call more.

    The usual settings are those of the model; the paper takes 6 steps and the embedded scale 2.5 for FLUX.1 Kontext.

    Args:
        threshold: the least similarity that keeps the source, above 0; above 1 keeps nothing.
        part: how much of the edit is held, from its first step, as a fraction of the steps; the paper holds 1 of 6. A
            step that lies in it in part is held in part.
        hold: how much of v_ref is taken where the two are not alike, in [0, 1]: a second dial for the strength of the
            edit, which is 1 minus the strength of the paper.

    Raises:
        InputError: a value is out of range.
    """

    threshold: float = 0.8
    part: float = 1 / 6
    hold: float = 0.0

    name: ClassVar[str] = "velo-edit"
    paper: ClassVar[str] = "Li et al. 2026, arXiv 2603.13388"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold <= 0:
            raise InputError(f"{self.threshold:g} is not above 0; 0.8 is usual.", parameter="threshold")
        for name, usual in {"part": "1/6", "hold": "0"}.items():
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{getattr(self, name):g} lies outside [0, 1]; {usual} is usual.", parameter=name)

    def kept(self, problem: EditProblem, pair: Pair, x: Tensor, i: int) -> Pair:
        """Returns the pair with the source's in its place where the two are alike."""
        share = problem.reach.inside(i, problem.grid.steps, 0.0, self.part)
        if share == 0:
            return pair
        reference = leading(x, problem.grid[i], problem.each(problem.x0), problem.grid[-1])
        size, apart = velocity(reference).abs(), (velocity(pair) - velocity(reference)).abs()
        alike = size >= self.threshold * (size + apart)
        return mixed(pair, reference, share * torch.where(alike, 1.0, self.hold).to(x))
