"""Grids: strictly monotone nodes, noisiest first and data last; ``grid[i] -> grid[i + 1]`` is a step.

Every spacing gives exactly the steps asked for. A step uses its own next node, never a fixed stride: the
``t - T // N`` of the usual scheduler lands on another level than the next one on its list (for ``linspace`` always,
for ``trailing`` unless N divides T).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from .._utils import choices
from .._utils.errors import InputError, UnknownName, is_number, is_whole
from .._utils.tensors import numbers
from .path import GaussianPath, Node


@dataclass(frozen=True)
class Grid:
    """Nodes from the noisiest to the data; S + 1 of them make S steps.

    Args:
        nodes: at least two, sigma / alpha strictly falling.
        spacing: how they were chosen, for the record.
        path: the path that they lie on. ``between`` needs it; two grids are equal without regard to it.
        inner: nodes within steps that are known beforehand, such as those of a saved code: (step, part) -> node.

    Attributes:
        inner: the nodes within steps that were given or asked for so far.

    Raises:
        InputError: fewer than two nodes, nodes that do not fall, or an inner node of a step that is not there.
    """

    nodes: tuple[Node, ...]
    spacing: str = "explicit"
    path: GaussianPath | None = field(default=None, compare=False, repr=False)
    inner: Mapping[tuple[int, float], Node] = field(
        default_factory=dict[tuple[int, float], Node], compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if len(self.nodes) < 2:
            raise InputError("A grid needs at least one step, that is two nodes.")
        self._check_order()
        for i, part in self.inner:
            self._check_place(i, part)
        object.__setattr__(self, "inner", dict(self.inner))

    def _check_order(self) -> None:
        for a, b in pairwise(self.nodes):
            if not b.ratio < a.ratio:
                raise InputError(
                    f"A grid's nodes must go from noise to data without a repeat, but t = {b.t:g} "
                    f"follows t = {a.t:g} with no less noise."
                )

    def _check_place(self, i: int, part: float) -> None:
        if not is_whole(i) or not 0 <= i < self.steps:
            raise InputError(f"{i} is no step of this grid; use 0 to {self.steps - 1}.", parameter="i")
        if not is_number(part) or not 0 <= part <= 1:
            raise InputError(f"{part} is no part of a step; use a number from 0 to 1.", parameter="part")

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

    def between(self, i: int, part: float) -> Node:
        """The node within step i, ``part`` of the way from ``grid[i]`` to ``grid[i + 1]``.

        The way is measured in the path's own coordinate (``GaussianPath.between``): sigma / alpha on
        variance-preserving and exploding paths, sigma on rectified flow. On a step from alpha = 0, where sigma / alpha
        is infinite, it is sigma / (alpha + sigma). A node that was asked for is remembered in ``inner``, and the same
        one is returned again.

        Args:
            i: a step, from 0 to S - 1.
            part: from 0 to 1; these two are the step's own nodes.

        Raises:
            InputError: i or part out of range, or a grid without a path.
        """
        self._check_place(i, part)
        if part in (0, 1):
            return self.nodes[i + int(part)]
        node = self.inner.get((i, part))
        if node is None:
            node = self._within(i, part)
            self.inner[i, part] = node  # type: ignore[index]  # a dict of its own, which no reader writes to
        return node

    def _within(self, i: int, part: float) -> Node:
        if self.path is None:
            raise InputError(
                "this grid does not know its path, so no node can be made between two of its nodes.",
                parameter="grid",
                hint="Make it with make_grid, or give path= to Grid.",
            )
        return self.path.between(self.nodes[i], self.nodes[i + 1], part)

    def rest(self, first: int) -> "Grid":
        """The grid from node ``first`` on, with its path and inner nodes.

        Args:
            first: from 0 to S - 1.
        """
        self._check_place(first, 0)
        inner = {(i - first, part): node for (i, part), node in self.inner.items() if i >= first}
        return Grid(self.nodes[first:], self.spacing, self.path, inner)

    def reversed(self) -> "Grid":
        """The same nodes from data to noise, for a solver that steps the other way; ``between`` asks this grid."""
        return _Reversed(self.nodes[::-1], self.spacing, self.path, forward=self)


@dataclass(frozen=True)
class _Reversed(Grid):
    """A grid that leads away from the data: made by ``Grid.reversed`` only, so its order needs no second check.

    Its nodes within steps are those of the grid that it reverses, to the bit wherever 1 - part is exact.
    """

    forward: Grid | None = field(default=None, compare=False, repr=False)

    def _check_order(self) -> None:
        pass

    def _within(self, i: int, part: float) -> Node:
        assert self.forward is not None
        return self.forward.between(self.steps - 1 - i, 1 - part)

    def rest(self, first: int) -> Grid:
        """As ``Grid.rest``, from node ``first`` of this direction on."""
        self._check_place(first, 0)
        assert self.forward is not None
        steps = self.steps - first
        inner = {(i, part): node for (i, part), node in self.forward.inner.items() if i < steps}
        return Grid(self.forward.nodes[: steps + 1], self.spacing, self.path, inner).reversed()

    def reversed(self) -> Grid:
        """The grid that this one reverses."""
        assert self.forward is not None
        return self.forward


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
    return grid_at(path, [(first + i * stride) * unit for i in range(steps)], "leading")


def trailing(path: GaussianPath, steps: int) -> Grid:
    """t = T - i T / S, rounded: starts at the noisiest level (diffusers ``trailing``; Lin et al. 2024, section 3.3)."""
    unit = _unit(path, steps)
    n = path.train_levels
    shift = n - path.levels  # 1 where data is the table's first entry: t then counts diffusers' timesteps
    levels = [_whole(path, n - i * n / steps) - shift for i in range(steps)]
    return grid_at(path, [unit * k for k in _distinct(path, levels)], "trailing")


def linspace(path: GaussianPath, steps: int) -> Grid:
    """S levels evenly from T down to 1, rounded; with S = 1 it is T."""
    unit = _unit(path, steps)
    n = path.levels
    gap = (n - 1) / max(steps - 1, 1)
    above = [n - 1.0, *(i * gap for i in range(steps - 2, -1, -1))]  # level 1, counted as numpy's linspace does
    levels = [_whole(path, k) + 1 for k in above]
    return grid_at(path, [unit * k for k in _distinct(path, levels)], "linspace")


def quadratic(path: GaussianPath, steps: int) -> Grid:
    """t_i = c i^2 with c such that the last is T (Song et al. 2021, appendix D.2, used there for CIFAR-10).

    Repeats near the data, which the formula gives for larger S, are spread to neighbouring levels.
    """
    unit = _unit(path, steps)
    levels = [path.levels * (i / steps) ** 2 for i in range(steps, 0, -1)]
    return grid_at(path, [unit * k for k in _distinct(path, levels)], "quadratic")


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
    times = numbers(path.t_of_log_snr(-2 * ratios.log()))
    times[0] = path.t_max
    return grid_at(path, times, "karras")


SPACINGS: dict[str, Callable[[GaussianPath, int], Grid]] = dict(
    zip(choices.SPACINGS, (leading, trailing, linspace, quadratic, karras), strict=True)
)


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
    return grid_at(path, values, "explicit")


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


def grid_at(path: GaussianPath, times: Sequence[float], spacing: str) -> Grid:
    """The grid through the nodes at these t, with the data node behind them; it keeps ``spacing`` for the record.

    Args:
        path: where the nodes lie.
        times: t in (0, t_max], falling; rising for ``leading``.
        spacing: how they were chosen.

    Raises:
        InputError: t that do not fall.
    """
    ordered = sorted(times, reverse=True) if spacing == "leading" else list(times)
    at = torch.tensor([*ordered, 0.0], dtype=torch.float64)
    columns = zip([*ordered, 0.0], numbers(path.alpha(at)), numbers(path.sigma(at)), strict=True)
    return Grid(tuple(Node(float(t), a, s) for t, a, s in columns), spacing, path)
