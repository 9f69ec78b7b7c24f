"""Edit-friendly DDPM inversion: the noise maps that lead DDPM from noise to the image."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, NotFinite
from ..core.contracts import Inversion, InversionProblem, InversionResult, OnStep, Solver
from ..core.grid import Grid
from ..core.process import eta_std
from ..solvers.base import move
from ..solvers.ddim import DDIM


@dataclass(frozen=True)
class EditFriendly(Inversion):
    """Noises the image to every node independently, and keeps what each step of DDPM lacks to the next one
    (Huberman-Spiegelglas et al. 2024, Algorithm 1): z_i = (x_{i+1} - mu_i) / std_i, x_{i+1} rewritten with it.

    The direction's coefficient is sqrt(sigma^2 - eta^2 std^2) as in Eq. 12 of the DDIM paper (the authors' code has eta
    in place of its square). The last map is zero, as theirs; where that misses the image, ``extras["end"]`` puts the
    sample on it. Models without text take it too. The way back may have a weight of its own, but only under the
    forward one's do the maps fit it: otherwise all but the last step leave the noised images.

    Args:
        eta: in (0, 1]; 1 is DDPM.
        skip: the noisiest part of the grid that is left out: below 1 a fraction, from 1 on whole steps. The code's
            grid is the rest. 0.36 is the paper's; more stays nearer to the image in an edit.
    """

    eta: float = 1.0
    skip: float = 0.36

    name: ClassVar[str] = "edit-friendly"
    exact: ClassVar[bool] = True
    paper: ClassVar[str] = "Huberman-Spiegelglas et al. 2024, arXiv 2304.06140"
    nfe: ClassVar[int] = 1
    order: ClassVar[int] = 1
    keeps: ClassVar[tuple[str, ...]] = ("noise", "end")
    floor_db: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise InputError(
                f"{self.eta:g} lies outside (0, 1]; 1 is DDPM, and without noise there are no noise maps.",
                parameter="eta",
            )
        if not self.skip >= 0 or (self.skip >= 1 and self.skip != int(self.skip)):
            raise InputError(
                f"{self.skip:g} is neither a fraction below 1 nor a whole number of steps.", parameter="skip"
            )

    def solver(self) -> Solver:
        """DDIM with this eta."""
        return DDIM(self.eta)

    def begin(self, grid: Grid) -> int:
        """The node that the way forward starts from.

        Raises:
            InputError: no step would be left.
        """
        first = round(self.skip * grid.steps) if self.skip < 1 else int(self.skip)
        if first >= grid.steps:
            most = f"0 to {(grid.steps - 1) / grid.steps:.4g}" if grid.steps > 1 else "0"
            raise InputError(
                f"{self.skip:g} leaves none of {grid.steps} step{'s' * (grid.steps > 1)}; use {most}, or more steps.",
                parameter="skip",
            )
        return first

    def part(self, grid: Grid) -> Grid:
        """The part of ``grid`` that the way forward takes; raises InputError where no step would be left."""
        return grid.rest(self.begin(grid))

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """The noised image at the first node, ``extras["noise"]`` [N, S, ...] and ``extras["end"]`` [N, 1, ...].

        Raises:
            InputError: a problem without a source of noise, or a skip that leaves no step.
        """
        if problem.noise is None:
            raise InputError(f"{self.name!r} draws noise; give a seed.", parameter="seed")
        rest = self.part(grid)
        # from the data end, so that a seed gives the same images at the nodes that two skips share
        noised = [node.alpha * x0 + node.sigma * problem.noise(x0) for node in rest.nodes[-2::-1]][::-1]
        denoise, x = problem.denoiser(problem.inversion_guidance), noised[0]
        maps: list[Tensor] = []
        with torch.no_grad():
            for i in range(rest.steps):
                t, s = rest[i], rest[i + 1]
                pair, std, last = denoise(x, t), eta_std(self.eta, t, s), i == rest.steps - 1
                z = torch.zeros_like(x) if last else (noised[i + 1] - move(pair, s, std, torch.zeros_like(x))) / std
                x = move(pair, s, std, z)
                if not bool(torch.isfinite(x).all()):
                    raise NotFinite(
                        f"The sample is no longer finite after the step from t = {t.t:g} to t = {s.t:g} "
                        f"(step {i + 1} of {rest.steps}): the network returned NaN or infinity.",
                        step=i + 1,
                    )
                maps.append(z)
                if on_step is not None:
                    on_step(i + 1, {"x": x})
        extras = {"noise": torch.stack(maps, dim=1), "end": x0.unsqueeze(1)}
        return InversionResult({"x": noised[0]}, rest, problem.prompts, extras)
