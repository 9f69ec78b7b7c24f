"""Grids: strictly monotone nodes, noisiest first and data last; ``grid[i] -> grid[i + 1]`` is a step.

Every spacing gives exactly the steps asked for. A step uses its own next node, never a fixed stride: the
``t - T // N`` of the usual scheduler lands on another level than the next one on its list (for ``linspace`` always,
for ``trailing`` unless N divides T).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from .._utils.errors import InputError, UnknownName, is_whole
from .path import GaussianPath, Node


@dataclass(frozen=True)
class Grid:
    """Nodes from the noisiest to the data; S + 1 of them make S steps.

    Args:
        nodes: at least two, sigma / alpha strictly falling.
        spacing: how they were chosen, for the record.
    """

    nodes: tuple[Node, ...]
    spacing: str = "explicit"

    def __post_init__(self) -> None:
        if len(self.nodes) < 2:
            raise InputError("A grid needs at least one step, that is two nodes.")
        for a, b in pairwise(self.nodes):
            if not b.ratio < a.ratio:
                raise InputError(
                    f"A grid's nodes must go from noise to data without a repeat, but t = {b.t:g} "
                    f"follows t = {a.t:g} with no less noise."
                )

    @property
    def steps(self) -> int:
        """S, the number of steps."""
        return len(self.nodes) - 1

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, i: int) -> Node:
        return self.nodes[i]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def reversed(self) -> "Grid":
        """The same nodes from data to noise, for a solver that walks the other way."""
        return _Reversed(self.nodes[::-1], self.spacing)


class _Reversed(Grid):
    """A grid walked away from the data: made by ``Grid.reversed`` only, so its order needs no second check."""

    def __post_init__(self) -> None:
        pass


def leading(path: GaussianPath, steps: int, offset: int = 0) -> Grid:
    """t = 1 + offset + i (T // S): the usual stride from the data end (diffusers ``leading``).

    The noisiest node may lie well below T; with S = 1 it is the level next to the data. ``offset`` is diffusers'
    ``steps_offset``, which counts its timesteps: where data is the table's first entry, offset 1 is the first level,
    and so is 0, since the step that diffusers then makes from that entry to itself is none. It is cut to the room that
    is left, where diffusers runs out of its table (S = T with offset 1).
    """
    unit = _unit(path, steps)
    if not is_whole(offset) or offset < 0:
        raise InputError(f"{offset} is not a number of levels; use 0 or more.", parameter="offset")
    stride = path.train_levels // steps
    top = 1 + (steps - 1) * stride
    below = path.train_levels - path.levels  # 1 where data is the table's first entry
    first = 1 + min(max(offset - below, 0), path.levels - top)
    return _make(path, [(first + i * stride) * unit for i in range(steps)], "leading")


def trailing(path: GaussianPath, steps: int) -> Grid:
    """t = T - i T / S, rounded: starts at the noisiest level (diffusers ``trailing``; Lin et al. 2024, section 3.3)."""
    unit = _unit(path, steps)
    n = path.train_levels
    shift = n - path.levels  # 1 where data is the table's first entry: t then counts diffusers' timesteps
    levels = [_whole(path, n - i * n / steps) - shift for i in range(steps)]
    return _make(path, [unit * k for k in _distinct(path, levels)], "trailing")


def linspace(path: GaussianPath, steps: int) -> Grid:
    """S levels evenly from T down to 1, rounded; with S = 1 it is T."""
    unit = _unit(path, steps)
    n = path.levels
    gap = (n - 1) / max(steps - 1, 1)
    above = [n - 1.0, *(i * gap for i in range(steps - 2, -1, -1))]  # level 1, counted as numpy's linspace does
    levels = [_whole(path, k) + 1 for k in above]
    return _make(path, [unit * k for k in _distinct(path, levels)], "linspace")


def quadratic(path: GaussianPath, steps: int) -> Grid:
    """t_i = c i^2 with c such that the last is T (Song et al. 2021, appendix D.2, used there for CIFAR-10).

    Repeats near the data, which the formula gives for larger S, are spread to neighbouring levels.
    """
    unit = _unit(path, steps)
    levels = [path.levels * (i / steps) ** 2 for i in range(steps, 0, -1)]
    return _make(path, [unit * k for k in _distinct(path, levels)], "quadratic")


def karras(path: GaussianPath, steps: int, rho: float = 7.0) -> Grid:
    """sigma / alpha evenly in its rho-th root (Karras et al. 2022, Eq. 5, arXiv 2206.00364), at real t.

    From T to the level next to the data. Where T has no signal left (alpha = 0), the first node is T itself and the
    others start from the level below.
    """
    unit = _unit(path, steps)
    first = path.node(path.t_max)
    top = first if math.isfinite(first.ratio) else path.node((path.levels - 1) * unit)
    # VE has no lowest training level but says how little noise is worth a step.
    low = getattr(path, "sigma_min", None) or path.node(unit).ratio
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    ratios = (top.ratio ** (1 / rho) + ramp * (low ** (1 / rho) - top.ratio ** (1 / rho))) ** rho
    times = path.t_of_log_snr(-2 * ratios.log()).tolist()
    times[0] = path.t_max
    return _make(path, times, "karras")


SPACINGS: dict[str, Callable[[GaussianPath, int], Grid]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
    "karras": karras,
}


def explicit(path: GaussianPath, times: Sequence[float]) -> Grid:
    """The nodes at these t in (0, t_max], in either order, and the data node.

    t counts as in the papers: for a DDPM table the diffusers timestep plus one.
    """
    values = [float(t) for t in times]
    if not values:
        raise InputError("an explicit grid needs at least one t.", parameter="spacing")
    if len(values) > 1 and values[0] < values[-1]:
        values.reverse()
    wrong = next((t for t in values if not 0 < t <= path.t_max), None)
    if wrong is not None:
        raise InputError(f"{wrong:g} cannot be a step's start here; use 0 < t <= {path.t_max:g}.", parameter="t")
    return _make(path, values, "explicit")


def make_grid(
    path: GaussianPath,
    steps: int = 50,
    spacing: str | Sequence[float] = "trailing",
    *,
    offset: int = 0,
) -> Grid:
    """A grid by name, or from a list of t.

    Args:
        path: the model's path.
        steps: S, 1 <= S <= ``path.levels``; ignored for an explicit list.
        spacing: one of ``SPACINGS`` or a sequence of t (see ``explicit``).
        offset: of ``leading``: diffusers' ``steps_offset``.

    Raises:
        InputError: S out of range, an unknown spacing, t out of range or not strictly monotone, an offset with
            another spacing.
    """
    if isinstance(spacing, str) and spacing not in SPACINGS:
        raise UnknownName("spacing", spacing, SPACINGS)
    if offset != 0 and spacing != "leading":
        raise InputError(f"{offset} goes with the spacing 'leading' only.", parameter="offset")
    if not isinstance(spacing, str):
        return explicit(path, spacing)
    return leading(path, steps, offset) if spacing == "leading" else SPACINGS[spacing](path, steps)


def _unit(path: GaussianPath, steps: int) -> float:
    """t between neighbouring levels, once S is known to fit."""
    if not is_whole(steps) or not 1 <= steps <= path.levels:
        raise InputError(
            f"{steps} does not fit this model; use a whole number from 1 to {path.levels}.", parameter="steps"
        )
    return path.t_max / path.levels


def _whole(path: GaussianPath, level: float) -> float:
    """Rounded where the path is discrete, halves to the even as in diffusers' lists."""
    return float(round(level)) if path.discrete else level


def _distinct(path: GaussianPath, levels: list[float]) -> list[float]:
    """The levels, rounded where the path is discrete, in 1..T and no two the same: moved as little as that needs."""
    if not path.discrete:
        return levels
    out = sorted(math.floor(k + 0.5) for k in levels)
    for i, k in enumerate(out):  # up from the data end
        out[i] = max(k, 1 if i == 0 else out[i - 1] + 1)
    for i in range(len(out) - 1, -1, -1):  # and down from the noise end
        out[i] = min(out[i], path.levels - (len(out) - 1 - i))
    return [float(k) for k in reversed(out)]


def _make(path: GaussianPath, times: Sequence[float], spacing: str) -> Grid:
    """Nodes at these t, noisiest first, and the data node behind them."""
    ordered = sorted(times, reverse=True) if spacing == "leading" else list(times)
    at = torch.tensor([*ordered, 0.0], dtype=torch.float64)
    columns = zip([*ordered, 0.0], path.alpha(at).tolist(), path.sigma(at).tolist(), strict=True)
    return Grid(tuple(Node(float(t), a, s) for t, a, s in columns), spacing)
