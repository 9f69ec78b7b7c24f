"""The stochastic samplers of models that were distilled to a few steps: LCM and TCD."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, is_number
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.path import GaussianPath, Node
from ..core.process import sigma_hat
from .base import NoisySolver, move

BOUNDARY_SCALE = 0.5
"""The number that the scaled timestep is divided by in the boundary condition of consistency models.

Luo et al. 2023 call it sigma_data, which elsewhere in this library is the standard deviation of the data.
"""


@dataclass(frozen=True)
class LCM(NoisySolver):
    """Multistep sampling of a consistency model: jumps to the data and adds new noise, in each step.

    A latent consistency model maps x at the timestep t to f(x) = c_skip x + c_out x0 (Luo et al. 2023, arXiv
    2310.04378, Eq. 9). There x0 is what the network predicts, c_skip = 1 / (1 + u^2), c_out = u / sqrt(1 + u^2), and
    u = scaling t / 0.5. The step ends at alpha f(x) + sigma z with new noise z, and the last one at f(x) (Song et al.
    2023, arXiv 2303.01469, algorithm 1). So S steps draw S - 1 times, and one step draws nothing.

    Args:
        scaling: the factor of the timestep, above 0 (``timestep_scaling`` of diffusers). None has no boundary
            condition: f(x) = x0, which is the limit of a large factor wherever the timestep is above 0.

    Raises:
        InputError: ``scaling`` is neither a finite number above 0 nor None.
    """

    scaling: float | None = 10.0

    name: ClassVar[str] = "lcm"
    order: ClassVar[int] = 0
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Luo et al. 2023, arXiv 2310.04378, Eq. 9; Song et al. 2023, arXiv 2303.01469, algorithm 1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scaling is not None and not (is_number(self.scaling) and self.scaling > 0):
            raise InputError(
                f"{self.scaling!r} is not a finite number above 0; 10 is usual, and None is f(x) = x0.",
                parameter="scaling",
            )

    @property
    def stochastic(self) -> bool:
        """Always true: every step but the last draws noise."""
        return True

    def moments(self, denoise: Denoiser, x: Tensor, grid: Grid, i: int) -> tuple[Tensor, float]:
        """Returns alpha f(x) and sigma at ``grid[i + 1]``; for the last step f(x) and 0."""
        t, s = grid[i], grid[i + 1]
        pair = denoise(x, t)
        skip, out = self._boundary(_path_of(grid, self.name).timestep(t.t))
        jumped = pair.x0 if out == 1 and skip == 0 else out * pair.x0 + skip * x
        return (jumped, 0.0) if i + 1 == grid.steps else (s.alpha * jumped, s.sigma)

    def _boundary(self, timestep: float) -> tuple[float, float]:
        """Returns c_skip and c_out."""
        if self.scaling is None:
            return 0.0, 1.0
        reach = min(self.scaling * timestep / BOUNDARY_SCALE, 1e100)  # whose square is still a number
        return 1 / (1 + reach**2), reach / (1 + reach**2) ** 0.5


@dataclass(frozen=True)
class TCD(NoisySolver):
    """Strategic stochastic sampling of trajectory consistency distillation (Zheng et al. 2024, arXiv 2402.19159).

    A step goes deterministically past its end, to the time (1 - gamma) t' of the model's timesteps, rounded down, and
    comes back to its end t' by adding new noise (algorithm 4 of the paper). The last step adds none.

    Args:
        gamma: in [0, 1] (``eta`` of diffusers). 0 adds no noise and is DDIM; with 1, every step goes to the data.

    Raises:
        InputError: ``gamma`` lies outside [0, 1].
    """

    gamma: float = 0.3

    name: ClassVar[str] = "tcd"
    order: ClassVar[int] = 0
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Zheng et al. 2024, arXiv 2402.19159, algorithm 4"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.gamma) or not 0 <= self.gamma <= 1:
            raise InputError(f"{self.gamma!r} lies outside [0, 1]; 0.3 is usual.", parameter="gamma")

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise: true if gamma is above 0."""
        return self.gamma > 0

    def moments(self, denoise: Denoiser, x: Tensor, grid: Grid, i: int) -> tuple[Tensor, float]:
        """Returns the deterministic part of the step to ``grid[i + 1]``, and the standard deviation of its noise."""
        t, s = grid[i], grid[i + 1]
        pair = denoise(x, t)
        if i + 1 == grid.steps or self.gamma == 0:
            return move(pair, s), 0.0
        past = self._past(_path_of(grid, self.name), s)
        return s.alpha / past.alpha * move(pair, past), sigma_hat(s, past)

    def _past(self, path: GaussianPath, s: Node) -> Node:
        """Returns the node at the timestep (1 - gamma) t', where t' is that of ``s``."""
        if not path.discrete:
            return path.node((1 - self.gamma) * s.t)
        timestep = path.timestep(s.t)
        # float32, as in diffusers: a product of a hair below a whole number would be rounded down by one more
        kept = float(torch.floor((1 - self.gamma) * torch.tensor(timestep, dtype=torch.float32)))
        return path.node(s.t - (timestep - kept))


def _path_of(grid: Grid, solver: str) -> GaussianPath:
    if grid.path is None:
        raise InputError(
            f"this grid has no path, and {solver!r} needs the timesteps of its nodes.",
            parameter="grid",
            hint="Make it with make_grid, or give path= to Grid.",
        )
    return grid.path
