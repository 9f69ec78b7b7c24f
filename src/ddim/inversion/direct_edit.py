"""DirectEdit: sampling calls the network where the inversion called it."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.contracts import InversionProblem, InversionResult, OnStep, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..solvers.base import path_ode
from ..solvers.one_stage import first_node
from .base import ByDDIM, Stepwise, pivot_of


@dataclass(frozen=True)
class DirectEdit(ByDDIM, Stepwise):
    """Inverts by Euler's method at guidance weight 1, and samples with the network's calls at the same points.

    Source: DirectEdit (2026, arXiv 2605.02417). The inversion steps from s to the noisier t along the slope at x_s,
    with the timestep of s. The step of sampling from t back to s moves its sample by the stored difference x_s - x_t,
    in the coordinate of the path (see ``PathODE``), and calls the network there with the timestep of s: this is where
    the inversion called it. The two steps then cancel, for any network, at one call each. The targets of an edit are
    moved by the difference of their source before every call. ``inversion.extras`` compares this with ``direct`` and
    ``edit-friendly``. The feature injection and the masks of the paper are not part of the inversion.

    The source is put on the stored samples after each step too, so that it is reconstructed to the bit with any
    guidance. The method works on every path and for models without text. A data node without noise is never asked: the
    step next to it has the timestep of t in both directions.
    """

    name: ClassVar[str] = "direct-edit"
    exact: ClassVar[bool] = True
    paper: ClassVar[str] = "DirectEdit 2026, arXiv 2605.02417"
    nfe: ClassVar[int] = 1
    order: ClassVar[int] = 1
    inversion_guidance: ClassVar[float | None] = 1.0
    keeps: ClassVar[tuple[str, ...]] = ("asked",)
    floor_db: ClassVar[float] = math.inf

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """Returns the state at ``grid[i]`` from the one at ``grid[i + 1]``, along the slope there."""
        x, t, s = state["x"], grid[i], grid[i + 1]
        return {"x": path_ode(grid).along(x, denoise(x, first_node(s, t)), s, t)}

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Returns the noisy end, and the points of the network calls as ``extras["asked"]``, [N, S, ...].

        These are the samples at the other nodes; the last one is x0.
        """
        path = pivot_of(problem, x0, grid, on_step=on_step, by=self)
        return InversionResult({"x": path[:, 0]}, grid, problem.prompts, {"asked": path[:, 1:]})
