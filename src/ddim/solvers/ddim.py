"""DDIM: the step between any two nodes, with eta between the deterministic ODE and DDPM."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._utils.errors import InputError
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.process import eta_std
from .base import NoisySolver, move


@dataclass(frozen=True)
class DDIM(NoisySolver):
    """The DDIM sampler, Eq. 12 and 16 of Song et al. 2021 (arXiv 2010.02502).

    Args:
        eta: in [0, 1]; 0 is deterministic and draws no noise, 1 has the posterior variance of DDPM.

    Raises:
        InputError: ``eta`` lies outside [0, 1].
    """

    eta: float = 0.0

    name: ClassVar[str] = "ddim"
    order: ClassVar[int] = 1
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Song et al. 2021, arXiv 2010.02502, Eq. 12"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise InputError(f"{self.eta:g} lies outside [0, 1]; 0 is DDIM, 1 is DDPM.", parameter="eta")

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise: true if eta is above 0."""
        return self.eta > 0

    def moments(self, denoise: Denoiser, x: Tensor, grid: Grid, i: int) -> tuple[Tensor, float]:
        """Returns the mean and the standard deviation of Eq. 12 at ``grid[i + 1]``."""
        t, s = grid[i], grid[i + 1]
        pair = denoise(x, t)
        std = eta_std(self.eta, t, s)
        return move(pair, s, std), std
