"""Uni-Inv: DDIM inversion that calls the network where the slope of the step before leads to."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName
from ..core.contracts import InversionProblem, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.prediction import Pair
from ..solvers.base import path_ode
from ..solvers.one_stage import first_guess, one_stage
from .base import ByDDIM, Stepwise

STARTS = ("network", "zero", "noise")
GUESS = "guess"
"""The name in ``LatentCode.extras`` of the first guess, [N, 1, ...], if a drawn noise leads to it."""


@dataclass(frozen=True)
class UniInv(ByDDIM, Stepwise):
    """Inverts deterministic DDIM by one corrected guess per step (Uni-Inv, Jiao et al. 2025, arXiv 2504.13109).

    The inverse of the DDIM step from t to s needs the prediction at x_t, which is not known yet. Plain DDIM inversion
    calls the network with x_s in its place. Here the slope of the step before leads from x_s to a guess of x_t, the
    network is called at the guess, and its slope makes the step:

        guess = u_s + D v_before,    u_t = u_s + D v(guess, t),

    in the coordinate of the path (see ``PathODE``). The guess misses x_t by two orders of the step size, so that the
    round trip is of second order. This is the fixed-point iteration of ``ddim`` from a better start: with more
    iterations both find the same x_t. The first step makes one call more if ``start`` is ``"network"``.

    The inversion of SteerFlow (arXiv 2604.01715) is this one as it is. The inversion of DNAEdit (Xie et al. 2025, arXiv
    2506.01430) is ``start="noise"``. It moves x along the straight line to a noise n, calls the network there, and
    changes n so that the line from the new x to it has the slope that the network answered; the next move is therefore
    along the slope of the step before, and the first one is along n - x0.

    Args:
        start: the slope of the first guess. ``"network"``: that of the network at the data; if there is no noise,
            called at the node where the step ends, with the image as it is. ``"zero"``: no slope. ``"noise"``: that of
            the line from the image to a noise n that is drawn for each image, so that the first guess is the noised
            image; it needs a seed. ``extras["guess"]`` keeps that guess, [N, 1, ...], for an editor.
        iterations: the number of network calls per step, at least 1. Each but the first is at the sample that the last
            one led to.

    Raises:
        InputError: an option is unknown or out of range.
    """

    start: str = "network"
    iterations: int = 1

    name: ClassVar[str] = "uni-inv"
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 26.0
    paper: ClassVar[str] = "Jiao et al. 2025, arXiv 2504.13109, section 3"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise UnknownName("start", self.start, STARTS)
        if self.iterations < 1:
            raise InputError(f"{self.iterations} is too few; 1 is Uni-Inv.", parameter="iterations")

    @property
    def nfe(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of network calls per step, which is ``iterations``."""
        return self.iterations

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The order of the round trip's error: one more than ``iterations``, because the first guess is better."""
        return self.iterations + 1

    @property
    def stores(self) -> tuple[str, ...]:
        """The first guess, if a drawn noise leads to it and it is not replaced."""
        return (GUESS,) if self.start == "noise" and self.iterations == 1 else ()

    def begin(self, problem: InversionProblem, x0: Tensor, grid: Grid) -> State:
        """Returns the images, with the slope of the first guess unless the network makes it.

        Raises:
            InputError: ``start`` is ``"noise"`` and the problem has no source of noise.
        """
        if self.start == "network":
            return {"x": x0}
        if self.start == "zero":
            return {"x": x0, "slope": torch.zeros_like(x0)}
        if problem.noise is None:
            raise InputError(f"{self.name!r} with start = 'noise' draws noise; give a seed.", parameter="seed")
        noise, data = problem.noise(x0), grid[-1]
        clean = (x0 - data.sigma * noise) / data.alpha
        return {"x": x0, "slope": path_ode(grid).slope(Pair(clean, noise))}

    def unstep(self, denoise: Denoiser, state: State, grid: Grid, i: int) -> State:
        """Returns the state at ``grid[i]`` from the one at ``grid[i + 1]``, with the slope of this step."""
        x, ode, back, k = state["x"], path_ode(grid), grid.reversed(), grid.steps - 1 - i
        if "slope" in state:
            guess = ode.step(x, state["slope"], back[k], back[k + 1])
        else:
            guess = first_guess(denoise, x, back, k, 1)
        x, pair = one_stage(denoise, x, guess, back, k, 1, self.iterations)
        return {"x": x, "slope": ode.slope(pair)}

    def kept(self, begin: State, grid: Grid) -> dict[str, Tensor]:
        """Returns the first guess, [N, 1, ...], if a drawn noise leads to it and it is not replaced."""
        if not self.stores:
            return {}
        guess = path_ode(grid).step(begin["x"], begin["slope"], grid[-1], grid[-2])
        return {GUESS: guess.unsqueeze(1)}
