"""Direct inversion: the source is put back on its pivot after every step forward."""

from dataclasses import dataclass, field

from torch import Tensor

from ..core.grid import Grid
from ..core.solve import OnStep
from .base import InversionProblem, InversionResult, pivot_of
from .plain import ByDDIM, Walks


@dataclass(frozen=True)
class DirectInversion(Walks, ByDDIM):
    """DDIM inversion at weight 1, all of whose nodes are kept (Ju et al. 2024, section 4).

    The way forward under any weight ends each step on the pivot, so the image comes back whatever the guidance; the
    paper adds the difference to the source's branch, which is the same. Whatever is edited beside the source starts
    from the pivot's noisy end and is told what the source's steps see. Models without text take it too.
    """

    name: str = field(default="direct", init=False, repr=False)
    exact: bool = field(default=True, init=False, repr=False)
    paper: str = field(default="Ju et al. 2024, arXiv 2310.01506", init=False, repr=False)
    nfe: int = field(default=1, init=False, repr=False)
    order: int = field(default=1, init=False, repr=False)
    back: float = field(default=1.0, init=False, repr=False)

    def walk(self, scene: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None = None) -> InversionResult:
        """The pivot's noisy end, and the rest of it as ``extras["pivot"]``, [N, S, ...]; the last entry is x0."""
        pivot = pivot_of(scene, x0, grid, self.back, on_step)
        return InversionResult({"x": pivot[:, 0]}, grid, scene.cond, {"pivot": pivot[:, 1:]})
