"""DDPM sampling with the larger variance, the sigma-hat rows of the DDIM paper's Table 1."""

from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Noise, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.process import eta_std, sigma_hat


@dataclass(frozen=True)
class DDPM(Solver):
    """sigma-hat: the direction of eta = 1 with more noise than it leaves room for (section 5 of arXiv 2010.02502).

    The last step draws no noise, as in algorithm 2 of Ho et al. 2020. eta = 1 with the posterior's variance is
    ``DDIM(eta=1)``.
    """

    name: ClassVar[str] = "ddpm"
    order: ClassVar[int] = 0
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Ho et al. 2020, arXiv 2006.11239; sigma-hat of arXiv 2010.02502, section 5"

    @property
    def stochastic(self) -> bool:
        """Always draws noise."""
        return True

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """The mean of eta = 1, and sigma-hat noise."""
        x, t, s = state["x"], grid[i], grid[i + 1]
        pair = denoise(x, t)
        std = eta_std(1.0, t, s)
        mean = s.alpha * pair.x0 + max(s.sigma**2 - std**2, 0.0) ** 0.5 * pair.eps
        if i + 1 == grid.steps:
            return {"x": mean}
        if noise is None:
            raise ValueError("ddpm needs a source of noise")
        return {"x": mean + sigma_hat(t, s) * noise(x)}
