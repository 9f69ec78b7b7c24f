"""Linear multistep methods: one network call a step, and the memory of earlier ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..core.contracts import Noise, Solver, State
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from ..core.path import Node
from .base import move, shift


@dataclass(frozen=True)
class AdamsBashforth(Solver):
    """Two-step Adams-Bashforth with the true, uneven steps, in x / alpha against sigma / alpha.

    These are the variables of Eq. 14 of Song et al. 2021, whose section 7 proposes multistep methods for it; with
    even steps the weights are the familiar 3/2 and -1/2. The first step is Euler's, that is DDIM's.
    """

    name: ClassVar[str] = "adams-bashforth"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Song et al. 2021, arXiv 2010.02502, Eq. 14 and section 7"

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """From node i to i + 1 with the eps of nodes i and i - 1."""
        x, t, s = state["x"], grid[i], grid[i + 1]
        pair = denoise(x, t)
        if "eps" not in state or grid[i - 1].alpha == 0:
            return {"x": move(pair, s), "eps": pair.eps}
        now, before = adams_bashforth_weights(t.ratio - s.ratio, grid[i - 1].ratio - t.ratio)
        return {"x": shift(x, now * pair.eps + before * state["eps"], t, s), "eps": pair.eps}


def adams_bashforth_weights(step: float, last: float) -> tuple[float, float]:
    """Weights of the newest and the one before, for a step of one length after a step of another; they sum to 1."""
    r = step / last
    return 1 + r / 2, -r / 2


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """DPM-Solver++ (2M): the data prediction, extrapolated in half the log-SNR.

    Source: Lu et al. 2022, algorithm 2 (arXiv 2211.01095). The first step and a last one to sigma = 0, whose length in
    log-SNR is infinite, are of first order.
    """

    name: ClassVar[str] = "dpm++2m"
    order: ClassVar[int] = 2
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "Lu et al. 2022, arXiv 2211.01095, algorithm 2"

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """From node i to i + 1 with the x0 of nodes i and i - 1."""
        x, t, s = state["x"], grid[i], grid[i + 1]
        pair = denoise(x, t)
        if "x0" not in state or s.sigma == 0 or t.alpha == 0 or grid[i - 1].alpha == 0:
            return {"x": move(pair, s), "x0": pair.x0}
        h, before = half_log_snr_gaps((grid[i - 1], t, s))
        extrapolated = pair.x0 + (h / (2 * before)) * (pair.x0 - state["x0"])
        # alpha_s - alpha_t sigma_s / sigma_t is alpha_s (1 - e^-h) of the paper, without the logarithms.
        gain = s.sigma / t.sigma
        return {"x": gain * x + (s.alpha - t.alpha * gain) * extrapolated, "x0": pair.x0}


def half_log_snr_gaps(nodes: Sequence[Node]) -> tuple[float, float]:
    """lambda = log(alpha / sigma) at three nodes: the newest gap and the one before it."""
    a, b, c = (math.log(n.alpha / n.sigma) for n in nodes)
    return c - b, b - a
