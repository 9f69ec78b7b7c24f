"""Grids of nodes from noise to data. Step i goes from ``grid[i]`` to ``grid[i + 1]``.

Every spacing returns exactly as many steps as were requested. A step ends on the next node of the grid. Schedulers in
diffusers step by the fixed stride ``T // N`` instead, which misses the next timestep of their own list: always for
``linspace``, and for ``trailing`` unless N divides T.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from .._utils import choices
from .._utils.errors import InputError, UnknownName, is_number, is_whole
from .._utils.tensors import numbers
from .beta import beta_quantiles
from .path import GaussianPath, Node, RectifiedFlow


@dataclass(frozen=True)
class Grid:
    """The nodes of a trajectory, from the one with the most noise to the data. S + 1 nodes make S steps.

    Args:
        nodes: at least two, with strictly decreasing sigma / alpha.
        spacing: the name of the rule that chose the nodes. ``Schedule.prior_std`` depends on it.
        path: the path that the nodes lie on. ``between`` needs it. Comparing two grids ignores it.
        inner: nodes inside steps that are known in advance, such as those of a saved code: (step, part) -> node.

    Attributes:
        inner: the nodes inside steps that were passed in, and those that ``between`` has returned so far.

    Raises:
        InputError: fewer than two nodes, nodes out of order, or an inner node of a step that does not exist.
    """

    nodes: tuple[Node, ...]
    spacing: str = "explicit"
    path: GaussianPath | None = field(default=None, compare=False, repr=False)
    inner: Mapping[tuple[int, float], Node] = field(
        default_factory=dict[tuple[int, float], Node], compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if len(self.nodes) < 2:
            raise InputError("A grid needs at least one step, which takes two nodes.")
        self._check_order()
        for i, part in self.inner:
            self._check_place(i, part)
        object.__setattr__(self, "inner", dict(self.inner))

    def _check_order(self) -> None:
        for a, b in pairwise(self.nodes):
            if not b.ratio < a.ratio:
                raise InputError(
                    f"The nodes of a grid must go from noise to data without a repeat, but t = {b.t:g} "
                    f"follows t = {a.t:g} with no less noise."
                )

    def _check_place(self, i: int, part: float) -> None:
        if not is_whole(i) or not 0 <= i < self.steps:
            raise InputError(f"{i} is not a step of this grid; use 0 to {self.steps - 1}.", parameter="i")
        if not is_number(part) or not 0 <= part <= 1:
            raise InputError(f"{part} is not a fraction of a step; use a number from 0 to 1.", parameter="part")

    @property
    def steps(self) -> int:
        """The number of steps S: one less than the number of nodes."""
        return len(self.nodes) - 1

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, i: int) -> Node:
        return self.nodes[i]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def between(self, i: int, part: float) -> Node:
        """Returns a node inside step i, at the fraction ``part`` of the distance from ``grid[i]`` to ``grid[i + 1]``.

        The distance is measured in the path's own coordinate (see ``GaussianPath.between``): sigma / alpha on
        variance-preserving and variance-exploding paths, sigma on rectified flow. For a step that starts at alpha = 0,
        where sigma / alpha is infinite, it is sigma / (alpha + sigma). Each returned node is stored in ``inner``, so
        that the same arguments always return the same node.

        Args:
            i: the step, from 0 to S - 1.
            part: the fraction, from 0 to 1; 0 returns ``grid[i]`` and 1 returns ``grid[i + 1]``.

        Raises:
            InputError: ``i`` or ``part`` is out of range, or the grid has no path.
        """
        self._check_place(i, part)
        if part in (0, 1):
            return self.nodes[i + int(part)]
        node = self.inner.get((i, part))
        if node is None:
            node = self._within(i, part)
            self.inner[i, part] = node  # type: ignore[index]  # __post_init__ made a dict of its own
        return node

    def _within(self, i: int, part: float) -> Node:
        if self.path is None:
            raise InputError(
                "this grid has no path, so it cannot compute a node between two of its nodes.",
                parameter="grid",
                hint="Make it with make_grid, or give path= to Grid.",
            )
        return self.path.between(self.nodes[i], self.nodes[i + 1], part)

    def rest(self, first: int) -> "Grid":
        """Returns the grid from node ``first`` to the data, with the same path and inner nodes.

        Args:
            first: the index of a node, from 0 to S - 1.
        """
        self._check_place(first, 0)
        inner = {(i - first, part): node for (i, part), node in self.inner.items() if i >= first}
        return Grid(self.nodes[first:], self.spacing, self.path, inner)

    def reversed(self) -> "Grid":
        """Returns the same nodes from data to noise, for a solver that steps towards the noise.

        ``between`` on the result returns the nodes of this grid.
        """
        return _Reversed(self.nodes[::-1], self.spacing, self.path, forward=self)


@dataclass(frozen=True)
class _Reversed(Grid):
    """A grid from data to noise. Only ``Grid.reversed`` makes one, so the order of its nodes is not checked again.

    Its nodes inside steps are those of the forward grid: the same bits wherever 1 - part is exact in floats.
    """

    forward: Grid | None = field(default=None, compare=False, repr=False)

    def _check_order(self) -> None:
        pass

    def _within(self, i: int, part: float) -> Node:
        assert self.forward is not None
        return self.forward.between(self.steps - 1 - i, 1 - part)

    def rest(self, first: int) -> Grid:
        """See ``Grid.rest``; ``first`` counts in the direction of this grid, from data to noise."""
        self._check_place(first, 0)
        assert self.forward is not None
        steps = self.steps - first
        inner = {(i, part): node for (i, part), node in self.forward.inner.items() if i < steps}
        return Grid(self.forward.nodes[: steps + 1], self.spacing, self.path, inner).reversed()

    def reversed(self) -> Grid:
        """Returns the forward grid, from noise to data."""
        assert self.forward is not None
        return self.forward


def leading(path: GaussianPath, steps: int, offset: int = 0, *, data_counts: bool = False) -> Grid:
    """Returns the nodes t = 1 + offset + i (T // S) for i = 0..S-1: the spacing ``leading`` of diffusers.

    The first node may have much less noise than T; with S = 1 it is the noise level next to the data. ``offset`` is
    ``steps_offset`` in diffusers, which counts timesteps. If the data is the first entry of the table, offsets 0 and 1
    both start at the first noise level, because the step that diffusers makes at offset 0 from that entry to itself
    does nothing. An offset that would leave the table (S = T with offset 1) is reduced; diffusers reads past its end.

    Args:
        path: the path.
        steps: the number of steps S.
        offset: ``steps_offset`` of diffusers.
        data_counts: whether the data is one of the evenly spaced points, as in diffusers' DPM-Solver schedulers: the
            nodes are t = 1 + offset + i (T // (S + 1)) for i = 1..S.
    """
    unit = _unit(path, steps)
    if not is_whole(offset) or offset < 0:
        raise InputError(f"{offset} is not a number of levels; use a whole number of at least 0.", parameter="offset")
    stride = max(path.train_levels // (steps + data_counts), 1)
    top = 1 + (steps - 1) * stride
    below = path.train_levels - path.levels  # 1 if the data is the first entry of the table, else 0
    first = 1 + min(max(offset - below + data_counts * stride, 0), path.levels - top)
    return grid_at(path, [(first + i * stride) * unit for i in range(steps)], "leading")


def trailing(path: GaussianPath, steps: int) -> Grid:
    """Returns the nodes t = T - i T / S, rounded, for i = 0..S-1: the spacing ``trailing`` of diffusers.

    The first node is always T (Lin et al. 2024, arXiv 2305.08891, section 3.3).
    """
    unit = _unit(path, steps)
    n = path.train_levels
    shift = n - path.levels  # 1 if the data is the first entry of the table, where t is the timestep
    levels = [_whole(path, n - i * n / steps) - shift for i in range(steps)]
    return grid_at(path, [unit * k for k in _distinct(path, levels)], "trailing")


def linspace(path: GaussianPath, steps: int, *, data_counts: bool = False) -> Grid:
    """Returns S evenly spaced levels from T down to 1, rounded; with S = 1 the level T.

    Args:
        path: the path.
        steps: the number of steps S.
        data_counts: whether the level 1 is left out of S + 1 such levels, as in diffusers' DPM-Solver schedulers, so
            that the last step starts higher.
    """
    unit = _unit(path, steps)
    n = path.levels
    if data_counts:
        top = path.train_levels - 1  # counted as the entries of the table, like the timesteps of diffusers
        levels = [_whole(path, top * i / steps) + n - top for i in range(steps, 0, -1)]
        return grid_at(path, [unit * k for k in _distinct(path, levels)], "linspace")
    gap = (n - 1) / max(steps - 1, 1)
    above = [n - 1.0, *(i * gap for i in range(steps - 2, -1, -1))]  # levels above 1, computed as numpy.linspace does
    levels = [_whole(path, k) + 1 for k in above]
    return grid_at(path, [unit * k for k in _distinct(path, levels)], "linspace")


def quadratic(path: GaussianPath, steps: int) -> Grid:
    """Returns the nodes t_i = c i^2, with c such that the largest is T (Song et al. 2021, appendix D.2, for CIFAR-10).

    For larger S the formula repeats levels near the data; repeated levels move to free neighbouring levels.
    """
    unit = _unit(path, steps)
    levels = [path.levels * (i / steps) ** 2 for i in range(steps, 0, -1)]
    return grid_at(path, [unit * k for k in _distinct(path, levels)], "quadratic")


def karras(path: GaussianPath, steps: int, rho: float = 7.0, ends: tuple[Node, Node] | None = None) -> Grid:
    """Returns nodes that are evenly spaced in (sigma / alpha)^(1 / rho) (Karras et al. 2022, arXiv 2206.00364, Eq. 5).

    They run from T to the noise level next to the data, and their t need not be whole numbers. If there is no signal at
    T (alpha = 0), the first node is T and the spacing starts from the level below it.

    Args:
        path: the path.
        steps: the number of steps S.
        rho: the root, above 0.
        ends: the nodes at which the first and the last step start, in place of T and the level next to the data. With
            them, the coordinate on rectified flow is sigma, as in diffusers.
    """
    return _ramp(path, steps, "karras", ends, lambda level: level ** (1 / rho), lambda root: root**rho)


def exponential(path: GaussianPath, steps: int, ends: tuple[Node, Node] | None = None) -> Grid:
    """Returns nodes that are evenly spaced in log(sigma / alpha): a geometric sequence of noise levels.

    It is the sequence of score-based models (Song et al. 2021, arXiv 2011.13456, appendix C) and DPM-Solver's uniform
    log-SNR (Lu et al. 2022, arXiv 2206.00927). The nodes run between the same ends as those of ``karras``, whose limit
    for large rho it is.

    Args:
        path: the path.
        steps: the number of steps S.
        ends: see ``karras``.
    """
    return _ramp(path, steps, "exponential", ends, torch.log, torch.exp)


def beta(path: GaussianPath, steps: int, ends: tuple[Node, Node] | None = None) -> Grid:
    """Returns nodes at the quantiles of Beta(0.6, 0.6) between the two ends, so that most lie near one of them.

    Source: Lee et al. 2024, arXiv 2407.12173, section 4; 0.6 are the defaults of diffusers. As there, the quantiles are
    those of sigma / alpha, and on rectified flow those of sigma.

    Args:
        path: the path.
        steps: the number of steps S.
        ends: see ``karras``.
    """

    def parts(even: torch.Tensor) -> torch.Tensor:
        return 1 - beta_quantiles(1 - even, 0.6, 0.6)

    return _ramp(path, steps, "beta", ends, torch.clone, torch.clone, parts)


def _ramp(
    path: GaussianPath,
    steps: int,
    spacing: str,
    ends: tuple[Node, Node] | None,
    warp: Callable[[torch.Tensor], torch.Tensor],
    unwarp: Callable[[torch.Tensor], torch.Tensor],
    parts: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
) -> Grid:
    """Returns nodes whose noise levels, after ``warp``, lie at ``parts`` of even numbers in [0, 1]; see ``karras``."""
    unit = _unit(path, steps)
    first = path.node(path.t_max) if ends is None else ends[0]
    top = first if math.isfinite(first.ratio) else path.node((path.levels - 1) * unit)
    flow = False
    if ends is not None:
        flow = isinstance(path, RectifiedFlow)
        high, low = (first.sigma, ends[1].sigma) if flow else (top.ratio, min(ends[1].ratio, top.ratio))
    else:
        # A VE path has no lowest training level; its sigma_min is the least noise that a step starts at.
        high, low = top.ratio, getattr(path, "sigma_min", None) or path.node(unit).ratio
    bounds = warp(torch.tensor([high, low], dtype=torch.float64))
    even = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = unwarp(bounds[0] + parts(even) * (bounds[1] - bounds[0]))
    times = numbers(levels if flow else path.t_of_log_snr(-2 * levels.log()))
    times[0] = first.t  # exactly, and where T has no signal, in place of the level below
    return grid_at(path, times, spacing)


def lcm(path: GaussianPath, steps: int, origin: int = 50) -> Grid:
    """Returns S of the levels that a consistency model was distilled on, as evenly spaced as their number allows.

    These are t = k T / origin, rounded down to a multiple, for k = 1..origin (Luo et al. 2023, arXiv 2310.04378,
    section 4.3; ``LCMScheduler`` and ``TCDScheduler`` of diffusers). The first node is the noisiest of them. More steps
    than ``origin`` are taken from all T levels, where diffusers refuses.

    Args:
        path: the path of the model.
        steps: the number of steps S.
        origin: the number of those levels, ``original_inference_steps`` of diffusers.
    """
    unit = _unit(path, steps)
    if not is_whole(origin) or origin < 1:
        raise InputError(f"{origin!r} is not a number of levels; use 1 or more.", parameter="origin")
    count = origin if steps <= origin <= path.train_levels else path.train_levels
    stride, below = path.train_levels // count, path.train_levels - path.levels
    levels = [float((count - i * count // steps) * stride - below) for i in range(steps)]
    return grid_at(path, [unit * k for k in _distinct(path, levels)], "lcm")


SPACINGS: dict[str, Callable[[GaussianPath, int], Grid]] = dict(
    zip(choices.SPACINGS, (leading, trailing, linspace, quadratic, karras, exponential, beta, lcm), strict=True)
)


def explicit(path: GaussianPath, times: Sequence[float]) -> Grid:
    """Returns the nodes at these t in (0, t_max], which may ascend or descend, followed by the data.

    t is the time of the path: on a DDPM table it is the diffusers timestep plus one.
    """
    try:
        values = [float(t) for t in times]
    except (TypeError, ValueError):
        raise InputError(
            f"{times!r} is neither the name of a spacing nor a list of numbers t.", parameter="spacing"
        ) from None
    if not values:
        raise InputError("an explicit grid needs at least one t.", parameter="spacing")
    if len(values) > 1 and values[0] < values[-1]:
        values.reverse()
    wrong = next((t for t in values if not 0 < t <= path.t_max), None)
    if wrong is not None:
        raise InputError(f"{wrong:g} cannot be a step's start; use 0 < t <= {path.t_max:g}.", parameter="t")
    return grid_at(path, values, "explicit")


def make_grid(
    path: GaussianPath,
    steps: int = 50,
    spacing: str | Sequence[float] = "trailing",
    *,
    offset: int = 0,
    origin: int = 50,
) -> Grid:
    """Makes a grid by the name of its spacing, or from a list of t.

    Args:
        path: the path of the model.
        steps: the number of steps S, 1 <= S <= ``path.levels``. Ignored if ``spacing`` is a list.
        spacing: a key of ``SPACINGS``, or a sequence of t (see ``explicit``).
        offset: ``steps_offset`` of diffusers; only for the spacing ``leading``.
        origin: ``original_inference_steps`` of diffusers; only for the spacing ``lcm``.

    Raises:
        InputError: S is out of range, the spacing is unknown, a t is out of range, the t are not strictly monotone, or
            ``offset`` was passed with another spacing.
    """
    named = isinstance(spacing, str)
    if named and spacing not in SPACINGS:
        raise UnknownName("spacing", spacing, SPACINGS)
    if offset != 0 and not (named and spacing == "leading"):
        raise InputError(f"{offset} applies to the spacing 'leading' only.", parameter="offset")
    if not named:
        return explicit(path, spacing)
    if spacing == "lcm":
        return lcm(path, steps, origin)
    return leading(path, steps, offset) if spacing == "leading" else SPACINGS[spacing](path, steps)


def _unit(path: GaussianPath, steps: int) -> float:
    """Returns the distance in t of two neighbouring levels. Raises InputError if S is not in 1..levels."""
    if not is_whole(steps) or not 1 <= steps <= path.levels:
        raise InputError(
            f"{steps} does not fit this model; use a whole number from 1 to {path.levels}.", parameter="steps"
        )
    return path.t_max / path.levels


def _whole(path: GaussianPath, level: float) -> float:
    """Rounds a level if the path is discrete; halves go to the even number, as in diffusers."""
    return float(round(level)) if path.discrete else level


def _distinct(path: GaussianPath, levels: list[float]) -> list[float]:
    """Rounds descending levels if the path is discrete, and moves repeated ones apart, as little as possible.

    The result lies in 1..levels and descends strictly.
    """
    if not path.discrete:
        return levels
    out = sorted(math.floor(k + 0.5) for k in levels)
    for i, k in enumerate(out):  # from the data end upwards: each level above the one before
        out[i] = max(k, 1 if i == 0 else out[i - 1] + 1)
    for i in range(len(out) - 1, -1, -1):  # back down: the first pass may exceed the top
        out[i] = min(out[i], path.levels - (len(out) - 1 - i))
    return [float(k) for k in reversed(out)]


def grid_at(path: GaussianPath, times: Sequence[float], spacing: str) -> Grid:
    """Makes the grid of the nodes at these t, followed by the data.

    Args:
        path: the path that the nodes lie on.
        times: t in (0, t_max], descending; for the spacing ``leading`` ascending.
        spacing: the name of the rule that chose them, stored in the grid.

    Raises:
        InputError: the t are not strictly monotone.
    """
    ordered = sorted(times, reverse=True) if spacing == "leading" else list(times)
    at = torch.tensor([*ordered, 0.0], dtype=torch.float64)
    columns = zip([*ordered, 0.0], numbers(path.alpha(at)), numbers(path.sigma(at)), strict=True)
    return Grid(tuple(Node(float(t), a, s) for t, a, s in columns), spacing, path)
