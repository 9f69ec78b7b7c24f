"""DDPM sampling with the larger variance: the rows sigma-hat in Table 1 of the DDIM paper."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Noise, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.process import eta_std, sigma_hat


@dataclass(frozen=True)
class DDPM(Solver):
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

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Returns the state at ``grid[i + 1]``: the mean of DDIM with eta = 1 plus noise of sigma-hat."""
        x, t, s = state["x"], grid[i], grid[i + 1]
        pair = denoise(x, t)
        std = eta_std(1.0, t, s)
        mean = s.alpha * pair.x0 + max(s.sigma**2 - std**2, 0.0) ** 0.5 * pair.eps
        if i + 1 == grid.steps:
            return {"x": mean}
        if noise is None:
            raise ValueError("ddpm needs a source of noise")
        return {"x": mean + sigma_hat(t, s) * noise(x)}
