"""DDPM sampling with the larger variance: the rows sigma-hat in Table 1 of the DDIM paper."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.process import eta_std, sigma_hat
from .base import NoisySolver, move


@dataclass(frozen=True)
class DDPM(NoisySolver):
    """The DDPM sampler with the larger variance, sigma-hat (section 5 of arXiv 2010.02502).

    The mean is that of DDIM with eta = 1, but the added noise has the standard deviation sigma-hat, so that x gets more
    noise than its node has. The last step adds no noise, as in algorithm 2 of Ho et al. 2020. For DDPM with the
    posterior variance use ``DDIM(eta=1)``.
    """

    name: ClassVar[str] = "ddpm"
    order: ClassVar[int] = 0
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Ho et al. 2020, arXiv 2006.11239; sigma-hat of arXiv 2010.02502, section 5"

    @property
    def stochastic(self) -> bool:
        """Always true: every step but the last draws noise."""
        return True

    def moments(self, denoise: Denoiser, x: Tensor, grid: Grid, i: int) -> tuple[Tensor, float]:
        """Returns the mean of DDIM with eta = 1 at ``grid[i + 1]``, and sigma-hat; for the last step 0."""
        t, s = grid[i], grid[i + 1]
        mean = move(denoise(x, t), s, eta_std(1.0, t, s))
        return mean, 0.0 if i + 1 == grid.steps else sigma_hat(t, s)
