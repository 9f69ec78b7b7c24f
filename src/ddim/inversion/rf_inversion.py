"""RF-Inversion: an inversion that a controller draws towards a given noise."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .._utils.errors import InputError
from ..core.contracts import InversionProblem, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..solvers.base import advanced, path_ode, straight, velocity
from ..solvers.one_stage import first_node
from .base import ByDDIM, Stepwise


@dataclass(frozen=True)
class RFInversion(ByDDIM, Stepwise):
    """Steps to the noise along a mean of the network's velocity and of the straight line to a noise y1.

    Source: Rout et al. 2024, arXiv 2410.10792, Eq. 8, without noise in the steps. In the straight view of a path (see
    ``straight``) with the sample y at sigma, a step of length D is

        y' = y + D (v + gamma ((y1 - y) / (1 - sigma) - v)),

    where v = eps - x0 is the velocity at y. One noise y1 is drawn for each image. The velocity is called with the
    timestep of y, and the lengths are those of the same grid; at a data node without noise it is called with the
    timestep of the node where the step ends. Every node of every path is a node of a rectified flow in this view, so
    that the method works on all of them.

    The code is a more typical sample of noise than that of DDIM inversion, and less of the image is in it. Plain DDIM
    samples it, so that the image does not come back. ``extras["source"]`` keeps the image, [N, 1, ...], for an editor
    that leads to it; ``reconstruct`` does not use it. The paper inverts without a prompt, as ``inversion_guidance=0``
    does on a model that has an unconditional branch.

    Args:
        gamma: the strength of the controller, in [0, 1]. 0 is Euler's method, and 1 is the straight line, which ends at
            y1 where no signal is left, and elsewhere at the image noised by y1.

    Raises:
        InputError: ``gamma`` lies outside [0, 1].
    """

    gamma: float = 0.5

    name: ClassVar[str] = "rf-inversion"
    exact: ClassVar[bool] = False
    paper: ClassVar[str] = "Rout et al. 2024, arXiv 2410.10792, Eq. 8"
    nfe: ClassVar[int] = 1
    order: ClassVar[int] = 1
    keeps: ClassVar[tuple[str, ...]] = ("source",)
    floor_db: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1:
            raise InputError(
                f"{self.gamma:g} lies outside [0, 1]; 0 is Euler's method, 1 the straight line to the noise.",
                parameter="gamma",
            )

    def begin(self, problem: InversionProblem, x0: Tensor, grid: Grid) -> State:
        """Returns the images and the noise y1. Raises InputError if the problem has no source of noise."""
        if problem.noise is None:
            raise InputError(f"{self.name!r} draws noise; give a seed.", parameter="seed")
        return {"x": x0, "noise": problem.noise(x0)}

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """Returns the state at ``grid[i]`` from the one at ``grid[i + 1]``."""
        x, noise, t, s = state["x"], state["noise"], grid[i], grid[i + 1]
        scale, time = straight(s)
        v = velocity(path_ode(grid).moved(denoise(x, first_node(s, t)), x, s))
        v = v + self.gamma * ((noise - x / scale) / (1 - time) - v)
        return {"x": advanced(x, v, s, t), "noise": noise}

    def kept(self, begin: State, grid: Grid) -> dict[str, Tensor]:
        """Returns the images as ``source``, [N, 1, ...]."""
        return {"source": begin["x"].unsqueeze(1)}
