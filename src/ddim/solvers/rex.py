"""Rex: two samples, coupled through the increments of a Runge-Kutta method so that algebra can undo the step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName
from ..core.denoiser import Denoiser
from ..core.grid import Grid
from .base import path_ode, power
from .lattice import Lift, ReversibleSolver


class Tableau(NamedTuple):
    """The Butcher tableau of an explicit Runge-Kutta method.

    Attributes:
        order: the order of the method.
        parts: for each stage, the fraction of the step at which it lies, in [0, 1].
        stages: for each stage, the weights of the slopes of the earlier stages.
        weights: the weights of the slopes in the increment of the step.
    """

    order: int
    parts: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def increment(self, denoise: Denoiser, x: Tensor, grid: Grid, i: int, *, back: bool = False) -> Tensor:
        """Returns by how much the method moves u over a step of the grid; see ``PathODE`` for u and its ODE.

        Args:
            denoise: the model, which is called once per stage.
            x: the sample where the step starts, [N, ...].
            grid: the grid. Stages inside the step lie on its nodes ``between``.
            i: the step.
            back: whether to go from ``grid[i + 1]`` to ``grid[i]``, and not from ``grid[i]`` to ``grid[i + 1]``.
        """
        ode, nodes = path_ode(grid), [grid.between(i, 1 - part if back else part) for part in self.parts]
        begin, end = (grid[i + 1], grid[i]) if back else (grid[i], grid[i + 1])
        step = ode.time(end) - ode.time(begin)
        slopes: list[Tensor] = []
        for node, weights in zip(nodes, self.stages, strict=True):
            weight = ode.weight(node)
            at = weight / ode.weight(begin) * x + weight * step * _combined(weights, slopes, x)
            slopes.append(ode.slope(denoise(at, node)))
        return step * _combined(self.weights, slopes, x)


def _combined(weights: Sequence[float], slopes: Sequence[Tensor], like: Tensor) -> Tensor:
    """Returns the weighted sum of slopes, in the shape of ``like``; zeros if there are none."""
    total = torch.zeros_like(like)
    for weight, slope in zip(weights, slopes, strict=True):
        total = total + weight * slope
    return total


TABLEAUS: dict[str, Tableau] = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "midpoint": Tableau(2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "rk4": Tableau(
        4,
        (0.0, 0.5, 0.5, 1.0),
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}
"""The Runge-Kutta methods by name: Euler's, the midpoint rule, and the classical method of order 4."""


@dataclass(frozen=True)
class Rex(ReversibleSolver):
    """Rex for the ODE (Blasingame & Liu 2025, arXiv 2502.08834), in the coordinate of the path; see ``PathODE``.

    The state is two samples, x and hat. Let u and v be the two in that coordinate, u' and v' at the next node, and
    Psi_h(r, u) the increment of a Runge-Kutta method over the step h from r. The step is

        u' = zeta u + (1 - zeta) v + Psi_h(r, v),    v' = v - Psi_{-h}(r + h, u'),

    which is the coupling of McCallum & Foster 2024 (arXiv 2410.11648). The second increment leads back from the next
    node. Both samples follow the same trajectory, with errors of the order of the Runge-Kutta method. The network is
    also called at the data node, so that it must not predict x0.

    Args:
        tableau: the Runge-Kutta method. ``"euler"`` is of order 1 and makes 2 network calls per step, ``"midpoint"`` is
            of order 2 and makes 4, ``"rk4"`` is of order 4 and makes 8.
        zeta: how closely u keeps to itself, in (0, 1]. Inversion multiplies the distance of the two samples by 1 / zeta
            in every step. The paper uses 0.999.

    Raises:
        InputError: ``tableau`` is unknown, or ``zeta`` lies outside (0, 1].
    """

    tableau: str = "midpoint"
    zeta: float = 0.999

    name: ClassVar[str] = "rex"
    paper: ClassVar[str] = "Blasingame & Liu 2025, arXiv 2502.08834"
    keys: ClassVar[tuple[str, ...]] = ("x", "hat")
    asks_data: ClassVar[bool] = True
    remedy: ClassVar[str] = "use another number of steps, weaker guidance, or zeta nearer to 1"
    spread: ClassVar[tuple[float, float]] = (0.2, 8.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tableau not in TABLEAUS:
            raise UnknownName("tableau", self.tableau, TABLEAUS)
        if not 0 < self.zeta <= 1:
            raise InputError(f"{self.zeta:g} lies outside (0, 1]; the paper uses 0.999.", parameter="zeta")

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The order of the Runge-Kutta method."""
        return TABLEAUS[self.tableau].order

    @property
    def asks_between(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the Runge-Kutta method has a stage inside a step."""
        return any(0 < part < 1 for part in TABLEAUS[self.tableau].parts)

    @property
    def nfe(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of network calls per step: two for each stage of the Runge-Kutta method."""
        return 2 * len(TABLEAUS[self.tableau].parts)

    def first(self, grid: Grid) -> int:
        """Returns 0; or 1 where the coordinate is infinite at the first node: alpha = 0, except on rectified flow."""
        return path_ode(grid).first(grid)

    def start(self, denoise: Denoiser, x0: Tensor, grid: Grid) -> Mapping[str, Tensor]:
        """Returns the image for both samples."""
        return {"x": x0, "hat": x0}

    def lifts(self, grid: Grid, i: int) -> Sequence[Lift]:
        """Returns two lifts: x by an increment that starts from hat, then hat by one that leads back from the new x."""
        ode, tableau, zeta = path_ode(grid), TABLEAUS[self.tableau], self.zeta
        weight = ode.weight(grid[i + 1])
        ratio = weight / ode.weight(grid[i])

        def forth(denoise: Denoiser, others: Mapping[str, Tensor]) -> Tensor:
            hat = others["hat"]
            return ratio * (1 - zeta) * hat + weight * tableau.increment(denoise, hat, grid, i)

        def back(denoise: Denoiser, others: Mapping[str, Tensor]) -> Tensor:
            return -weight * tableau.increment(denoise, others["x"], grid, i, back=True)

        return (Lift("x", ratio * zeta, forth), Lift("hat", ratio, back))

    def amplification(self, grid: Grid) -> float:
        """Returns zeta^-S, the growth of the distance of the two samples over S steps of inversion."""
        return power(self.zeta, -grid.steps)
