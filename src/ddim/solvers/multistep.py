"""Linear multistep methods, which reuse the prediction of the step before: one network call per step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Noise, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.path import Node
from .base import move, path_ode


@dataclass(frozen=True)
class AdamsBashforth(Solver):
    """Two-step Adams-Bashforth with variable step size, in the coordinate of the path (see ``PathODE``).

    These are the variables of the ODE in Eq. 14 of Song et al. 2021, or on rectified flow x and sigma; section 7 of
    that paper proposes multistep methods for the ODE. With equal steps the weights are the well-known 3/2 and -1/2. The
    first step is a DDIM step, which is Euler's method in these variables.
    """

    name: ClassVar[str] = "adams-bashforth"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Song et al. 2021, arXiv 2010.02502, Eq. 14 and section 7"

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Returns the state at ``grid[i + 1]`` from the slopes at the nodes i and i - 1."""
        x, t, s, ode = state["x"], grid[i], grid[i + 1], path_ode(grid)
        pair = denoise(x, t)
        slope = ode.slope(pair)
        if "slope" not in state or ode.weight(grid[i - 1]) == 0:
            return {"x": move(pair, s), "slope": slope}
        lengths = ode.time(t) - ode.time(s), ode.time(grid[i - 1]) - ode.time(t)
        now, before = adams_bashforth_weights(*lengths)
        return {"x": ode.step(x, now * slope + before * state["slope"], t, s), "slope": slope}


def adams_bashforth_weights(step: float, last: float) -> tuple[float, float]:
    """Returns the weights of the current and the previous slope, for a step that follows one of length ``last``."""
    r = step / last
    return 1 + r / 2, -r / 2


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """DPM-Solver++ (2M), which extrapolates the predicted x0 linearly in half the log-SNR.

    Source: Lu et al. 2022, algorithm 2 (arXiv 2211.01095). The first step is of first order, and so is a last step to
    sigma = 0, where the log-SNR is infinite.
    """

    name: ClassVar[str] = "dpm++2m"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Lu et al. 2022, arXiv 2211.01095, algorithm 2"

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Returns the state at ``grid[i + 1]`` from the x0 at the nodes i and i - 1."""
        x, t, s = state["x"], grid[i], grid[i + 1]
        pair = denoise(x, t)
        if "x0" not in state or s.sigma == 0 or t.alpha == 0 or grid[i - 1].alpha == 0:
            return {"x": move(pair, s), "x0": pair.x0}
        h, before = half_log_snr_gaps((grid[i - 1], t, s))
        extrapolated = pair.x0 + (h / (2 * before)) * (pair.x0 - state["x0"])
        # alpha_s - alpha_t sigma_s / sigma_t equals alpha_s (1 - e^-h) of the paper, and needs no logarithm.
        gain = s.sigma / t.sigma
        return {"x": gain * x + (s.alpha - t.alpha * gain) * extrapolated, "x0": pair.x0}


def half_log_snr_gaps(nodes: Sequence[Node]) -> tuple[float, float]:
    """Returns the last and the first gap of lambda = log(alpha / sigma) between three consecutive nodes."""
    a, b, c = (math.log(n.alpha / n.sigma) for n in nodes)
    return c - b, b - a
