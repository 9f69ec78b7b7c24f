"""Edit-friendly DDPM inversion: finds the noise maps with which DDPM sampling ends at the image."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, NotFinite, UnknownName
from ..core.contracts import Inversion, InversionProblem, InversionResult, OnStep
from ..core.grid import Grid
from ..core.path import Node, TablePath
from ..solvers.base import NoisySolver
from ..solvers.consistency import LCM, TCD
from ..solvers.ddim import DDIM

SAMPLERS: dict[str, Callable[[float], NoisySolver]] = {"ddim": DDIM, "tcd": TCD, "lcm": lambda _: LCM()}
"""Name of a sampler that adds noise -> how it is made from eta."""


@dataclass(frozen=True)
class EditFriendly(Inversion):
    """Stores the noise maps of DDPM sampling that ends at the image (Huberman-Spiegelglas et al. 2024, Algorithm 1).

    The image is noised to every node independently. The noise map of a step is what the mean mu_i of the step lacks to
    reach the next noised image: z_i = (x_{i+1} - mu_i) / std_i. x_{i+1} is then recomputed from z_i. The same holds for
    the samplers of few-step models, ``lcm`` and ``tcd``.

    The coefficient of eps is sqrt(sigma^2 - eta^2 std^2), as in Eq. 12 of the DDIM paper; the authors' code has eta in
    place of eta^2. The last map is zero, as in the paper. Since the last step then does not end exactly at the image,
    sampling sets the sample to ``extras["end"]``. The method also works for models without text. If the inversion and
    sampling use different guidance weights, the maps do not fit the means: the samples leave the noised images, and
    only the last step returns to the image. ``inversion.extras`` compares this with ``direct`` and ``direct-edit``.

    ``noise_shift`` is the first part of TurboEdit, for models that were distilled to a few steps (Deutch et al. 2024,
    arXiv 2408.00735, section 4.1). The noised images get the noise of an earlier time than the one that the network is
    told, because independent noise leaves the samples noisier than those of the sampler. TurboEdit has 0.2, for the
    grid of 5 steps whose first is skipped: the image has the noise of the timesteps 599, 399, 199 and 0 where the
    network is told 799, 599, 399 and 199. The reconstruction stays exact.

    Args:
        eta: in (0, 1]; 1 is DDPM. For ``tcd`` it is gamma, and ``lcm`` has no other than 1.
        skip: how much of the noisy end of the grid to leave out: a fraction if below 1, otherwise a number of steps.
            The grid of the code is the rest. The default 0.36 is that of the paper. With a larger value, edits stay
            closer to the image.
        sampler: the sampler whose noise is found: ``ddim``, or one for few-step models, ``lcm`` or ``tcd``.
        noise_shift: in [0, 1): how much earlier the time is whose noise the noised images get, as a part of the time
            axis. The time is at least that of the first timestep.

    Raises:
        InputError: an option is out of range or unknown.
    """

    eta: float = 1.0
    skip: float = 0.36
    sampler: str = "ddim"
    noise_shift: float = 0.0

    name: ClassVar[str] = "edit-friendly"
    exact: ClassVar[bool] = True
    paper: ClassVar[str] = "Huberman-Spiegelglas et al. 2024, arXiv 2304.06140"
    nfe: ClassVar[int] = 1
    order: ClassVar[int] = 1
    keeps: ClassVar[tuple[str, ...]] = ("noise", "end")
    floor_db: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.eta <= 1:
            raise InputError(
                f"{self.eta:g} lies outside (0, 1]; 1 is DDPM, and without noise there are no noise maps.",
                parameter="eta",
            )
        if not self.skip >= 0 or (self.skip >= 1 and self.skip != int(self.skip)):
            raise InputError(
                f"{self.skip:g} is neither a fraction below 1 nor a whole number of steps.", parameter="skip"
            )
        if self.sampler not in SAMPLERS:
            raise UnknownName("sampler", str(self.sampler), SAMPLERS, parameter="sampler")
        if self.sampler == "lcm" and self.eta != 1:
            raise InputError(f"{self.eta:g} is no option of the sampler 'lcm'; leave it out.", parameter="eta")

        if not 0 <= self.noise_shift < 1:
            raise InputError(
                f"{self.noise_shift:g} lies outside [0, 1); 0 shifts nothing, 0.2 is that of TurboEdit.",
                parameter="noise_shift",
            )

    def solver(self) -> NoisySolver:
        """Returns the sampler with its eta."""
        return SAMPLERS[self.sampler](self.eta)

    def begin(self, grid: Grid) -> int:
        """Returns the index of the node at which sampling starts.

        Raises:
            InputError: ``skip`` leaves no step of this grid.
        """
        first = round(self.skip * grid.steps) if self.skip < 1 else int(self.skip)
        if first >= grid.steps:
            most = f"0 to {(grid.steps - 1) / grid.steps:.4g}" if grid.steps > 1 else "0"
            raise InputError(
                f"{self.skip:g} leaves none of {grid.steps} step{'s' * (grid.steps > 1)}; use {most}, or more steps.",
                parameter="skip",
            )
        return first

    def whole(self) -> "EditFriendly":
        """Returns the same method with ``skip`` = 0."""
        return replace(self, skip=0.0)

    def part(self, grid: Grid) -> Grid:
        """Returns the rest of ``grid``, after the skipped part. Raises InputError if no step is left."""
        return grid.rest(self.begin(grid))

    def _level(self, grid: Grid, node: Node) -> Node:
        """Returns the node whose noise the noised image at ``node`` gets."""
        if not self.noise_shift:
            return node
        path = grid.path
        if path is None:
            raise InputError(
                f"this grid has no path, and {self.noise_shift:g} needs the noise between its nodes.",
                parameter="noise_shift",
                hint="Make the grid with make_grid, or give path= to Grid.",
            )
        first = 1.0 if isinstance(path, TablePath) and path.data == "one" else 0.0  # where the timestep is 0
        length = path.train_levels if path.discrete else path.t_max
        return path.node(min(max(node.t - self.noise_shift * length, first), node.t))

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Returns the noised image at the first node, with ``extras["noise"]`` [N, S, ...] and ``"end"`` [N, 1, ...].

        Raises:
            InputError: the problem has no source of noise, or ``skip`` leaves no step.
            NotFinite: the sample contains NaN or infinity after a step.
        """
        if problem.noise is None:
            raise InputError(f"{self.name!r} draws noise; give a seed.", parameter="seed")
        rest = self.part(grid)
        levels = [self._level(grid, node) for node in rest.nodes[:-1]]
        # Drawn from the data end, so that a seed gives the same noised images whatever ``skip`` leaves out.
        noised = [node.alpha * x0 + node.sigma * problem.noise(x0) for node in levels[::-1]][::-1]
        denoise, x, solver = problem.denoiser(problem.inversion_guidance), noised[0], self.solver()
        maps: list[Tensor] = []
        with torch.no_grad():
            for i in range(rest.steps):
                t, s = rest[i], rest[i + 1]
                mean, std = solver.moments(denoise, x, rest, i)
                known = std > 0 and i < rest.steps - 1
                z = (noised[i + 1] - mean) / std if known else torch.zeros_like(x)
                # Sampling computes x from z too, with the same rounding; the next map must start from that x.
                x = mean + std * z
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
