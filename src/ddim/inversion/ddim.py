"""DDIM inversion: the implicit step solved by fixed-point iteration; one iteration is the plain method."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName
from .._utils.tensors import solved
from ..core.contracts import State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..solvers.base import shift
from .base import ByDDIM, Stepwise

LABELS = ("destination", "source")


@dataclass(frozen=True)
class DDIMInversion(ByDDIM, Stepwise):
    """Takes DDIM (eta = 0) from data to noise.

    The step back from s to the noisier t wants eps at x_t, which is not known yet. The iteration starts from x_s and
    asks the network at (x, t): the first iterate is plain DDIM inversion (Song et al. 2021, section 4.3), more
    iterations solve the implicit step (Pan et al. 2023, arXiv 2309.04907).

    For a network that predicts eps, the first iterate is that of prompt-to-prompt and of diffusers'
    ``DDIMInverseScheduler``, number for number. For one that predicts v it is not: diffusers reads what the network
    says at (x_s, t) with the alpha and sigma of s, and this method with those of t, where the network was asked. Both
    are of first order: on a mixture of Gaussians in ten steps the two latents are 0.36 apart, in a hundred 0.05.

    Args:
        iterations: at least 1; network calls a step.
        label: ``"destination"`` asks at t; ``"source"`` asks at s, where x_s lies (guided-diffusion), and needs
            iterations = 1, since there is nothing to iterate.
        anderson: how many earlier iterates Anderson acceleration mixes in; 0 is the plain iteration.
    """

    iterations: int = 1
    label: str = "destination"
    anderson: int = 0

    name: ClassVar[str] = "ddim"
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 14.0
    paper: ClassVar[str] = "Song et al. 2021, arXiv 2010.02502, section 4.3; Pan et al. 2023, arXiv 2309.04907"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise InputError(f"{self.iterations} is too few; 1 is plain DDIM inversion.", parameter="iterations")
        if self.label not in LABELS:
            raise UnknownName("label", self.label, LABELS)
        if self.label == "source" and self.iterations > 1:
            raise InputError(
                f"{self.iterations} needs label = 'destination'; the source's label leaves nothing to iterate.",
                parameter="iterations",
            )
        if self.anderson < 0:
            raise InputError(f"{self.anderson} is negative; 0 switches the acceleration off.", parameter="anderson")

    @property
    def nfe(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As many as iterations."""
        return self.iterations

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As many as iterations: each makes what is left of the implicit step smaller by the step's size."""
        return self.iterations

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """From node i + 1 to node i."""
        x, t, s = state["x"], grid[i], grid[i + 1]
        at = s if self.label == "source" else t
        mix = _Anderson(self.anderson)
        guess = x
        for _ in range(self.iterations):
            guess = mix(guess, shift(x, denoise(guess, at).eps, s, t))
        return {"x": guess}


class _Anderson:
    """Type-II Anderson mixing for one fixed point, a sample at a time (Walker & Ni 2011, SIAM J. Numer. Anal. 49).

    The weights solve a small least-squares problem in float64 with a ridge relative to its size, so that a sample
    that has converged divides by nothing.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.residuals: list[Tensor] = []
        self.images: list[Tensor] = []

    def __call__(self, x: Tensor, image: Tensor) -> Tensor:
        """The next iterate from x and g(x)."""
        if self.memory == 0:
            return image
        self.residuals = [*self.residuals, (image - x).flatten(1).double()][-self.memory - 1 :]
        self.images = [*self.images, image][-self.memory - 1 :]
        if len(self.images) == 1:
            return image
        newest = self.residuals[-1]
        differences = torch.stack([newest - r for r in self.residuals[:-1]], dim=1)  # [N, m, D]
        gram = differences @ differences.transpose(1, 2)
        scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-200)
        ridge = 1e-10 * scale[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        weights = solved(gram + ridge, (differences @ newest.unsqueeze(2)))  # [N, m, 1]
        mixed = image
        for k, earlier in enumerate(self.images[:-1]):
            w = weights[:, k, 0].to(image.dtype).view(-1, *[1] * (image.ndim - 1))
            mixed = mixed - w * (image - earlier)
        return mixed
