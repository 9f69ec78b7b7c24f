"""Gaussian paths x = alpha(t) x0 + sigma(t) eps, with t = 0 at the data.

Every model uses the same time axis: ``t`` runs from 0 (data) to ``t_max`` (the most noise). On a DDPM table, t is the
t of the papers, so alpha(0) = 1 and alpha(t) = sqrt(alpha_bar_t) for t = 1..T, and the diffusers timestep is
``path.timestep(t) = t - 1``. Some tables have their data end at their first entry (``set_alpha_to_one=False``, as in
Stable Diffusion). There t is the diffusers timestep itself, and T is the length of the table minus 1.

All values in this module are float64. It depends on torch alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName, is_number, is_whole

MOST_LEVELS = 100_000
"""The most entries a table may have: a hundred times the usual 1000, and still small in memory."""


@dataclass(frozen=True, slots=True)
class Node:
    """One point of a path or grid: the time ``t`` and the coefficients of x = alpha x0 + sigma eps at that time."""

    t: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha, the time of the ODE in Eq. 14 of Song et al. 2021 (arXiv 2010.02502); inf where alpha = 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


class GaussianPath(ABC):
    """Signal and noise coefficients as functions of a real time t in [0, t_max].

    Attributes:
        t_max: the time with the most noise.
        levels: the number of noise levels that a grid can use; a grid of S steps needs S <= levels.
        train_levels: the length of the training table; the spacings ``leading`` and ``trailing`` compute their strides
            from it.
        discrete: whether grids use whole numbers t only, because the network was trained on no others.
    """

    t_max: float
    levels: int
    train_levels: int
    discrete: bool

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Returns the signal coefficient at t, float64. ``t`` has any shape and real dtype; its shape is kept."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Returns the noise coefficient at t, float64. ``t`` has any shape and real dtype; its shape is kept."""

    @abstractmethod
    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Inverts ``log_snr``: returns t, clamped to [0, t_max], float64, in the shape of ``log_snr``."""

    @abstractmethod
    def timestep(self, t: float) -> float:
        """Converts t to the timestep that the network takes as its input, in the network's own numbering."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Returns log(alpha^2 / sigma^2) at t: +inf where sigma = 0 (clean data), -inf where alpha = 0 (pure noise)."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def node(self, t: float) -> Node:
        """Returns the node at t. Raises InputError if t lies outside [0, t_max]."""
        if not 0 <= t <= self.t_max:
            raise InputError(f"{t:g} lies outside this path; it runs from 0 to {self.t_max:g}.", parameter="t")
        at = torch.tensor([t], dtype=torch.float64)
        return Node(float(t), float(self.alpha(at)[0]), float(self.sigma(at)[0]))

    def between(self, t: Node, s: Node, part: float) -> Node:
        """Returns a node between t and s: at the fraction ``part`` of the distance, in the path's own coordinate.

        The coordinate is sigma / alpha, the time variable of the ODE in x / alpha. If it is infinite at one of the two
        nodes (alpha = 0), the coordinate is sigma / (alpha + sigma) instead: the sigma that rectified flow has at the
        same ratio.

        Args:
            t, s: two nodes of this path with different ratios, in either order.
            part: the fraction, strictly between 0 and 1; near 0 the result is near t.
        """
        if math.isfinite(t.ratio) and math.isfinite(s.ratio):
            ratio = t.ratio + part * (s.ratio - t.ratio)
        else:
            begin, end = (n.sigma / (n.alpha + n.sigma) for n in (t, s))
            share = begin + part * (end - begin)
            ratio = share / (1 - share)
        log_snr = torch.tensor([-2 * math.log(ratio)], dtype=torch.float64)
        return self.node(float(self.t_of_log_snr(log_snr)[0]))


@dataclass(frozen=True, eq=False)
class TablePath(GaussianPath):
    """A variance-preserving path (alpha^2 + sigma^2 = 1) that interpolates a table of alpha_bar.

    Between two entries the angle atan2(sigma, alpha) is linear in t. Unlike the log-SNR, the angle is finite at both
    ends of the table, even if the terminal SNR is zero.

    Args:
        alpha_bar: strictly decreasing values in [0, 1], shape [T] (``alphas_cumprod`` in diffusers); kept in float64.
            For ``data="one"`` they must be below 1.
        data: what t = 0 is. ``"one"``: alpha = 1 at t = 0, and t = k is entry k - 1 of the table. ``"first"``: t = k
            is entry k, so that entry 0 is the data.

    Raises:
        InputError: ``alpha_bar`` is not such a table, or ``data`` is unknown or does not fit the table.
    """

    alpha_bar: Tensor
    data: Literal["one", "first"] = "one"
    t_max: float = field(init=False)
    levels: int = field(init=False)
    train_levels: int = field(init=False)
    discrete: bool = field(init=False, default=True)
    _angle: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.alpha_bar).detach().to("cpu", torch.float64)
        if table.ndim != 1 or len(table) < 2:
            raise InputError(
                f"it must be a list of at least 2 numbers, not of shape {tuple(table.shape)}.", parameter="alpha_bar"
            )
        if not (table[0] <= 1 and table[-1] >= 0 and bool((table.diff() < 0).all())):
            raise InputError("its values must fall strictly and lie in [0, 1].", parameter="alpha_bar")
        if self.data not in ("one", "first"):
            raise UnknownName("data end", str(self.data), ["one", "first"], parameter="data")
        if self.data == "one":
            if table[0] >= 1:
                raise InputError(
                    "alpha_bar[0] is 1, so data and the first level coincide; use 'first'.", parameter="data"
                )
            table = torch.cat([torch.ones(1, dtype=torch.float64), table])
        object.__setattr__(self, "train_levels", len(self.alpha_bar))
        object.__setattr__(self, "levels", len(table) - 1)
        object.__setattr__(self, "t_max", float(len(table) - 1))
        object.__setattr__(self, "_angle", torch.atan2((1 - table).sqrt(), table.sqrt()))

    def _angle_at(self, t: Tensor) -> Tensor:
        t = torch.as_tensor(t).to("cpu", torch.float64)
        low = t.floor().clamp(0, self.levels - 1).long()
        return torch.lerp(self._angle[low], self._angle[low + 1], t - low)

    def alpha(self, t: Tensor) -> Tensor:
        """Returns the cosine of the angle at t; at whole t this is sqrt(alpha_bar_t)."""
        angle = self._angle_at(t)
        # cos(pi / 2) is 6e-17 in float64; a table that ends at alpha_bar = 0 must give exactly 0 there.
        return torch.where(angle >= math.pi / 2, torch.zeros_like(angle), angle.cos())

    def sigma(self, t: Tensor) -> Tensor:
        """Returns the sine of the angle at t; at whole t this is sqrt(1 - alpha_bar_t)."""
        return self._angle_at(t).sin()

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Inverts ``log_snr`` by a search in the table of angles. See ``GaussianPath.t_of_log_snr``."""
        log_snr = torch.as_tensor(log_snr).to("cpu", torch.float64)
        angle = torch.atan2(torch.ones_like(log_snr), (log_snr / 2).exp())
        high = torch.searchsorted(self._angle, angle.contiguous()).clamp(1, self.levels)
        start, end = self._angle[high - 1], self._angle[high]
        return (high - 1 + (angle - start) / (end - start)).clamp(0, self.t_max)

    def timestep(self, t: float) -> float:
        """Returns the diffusers timestep, t - 1 for ``data="one"`` or else t, but at least 0, the first trained one."""
        return max(t - 1 if self.data == "one" else t, 0.0)


@dataclass(frozen=True)
class VEPath(GaussianPath):
    """The variance-exploding path alpha = 1, sigma = t of Karras et al. 2022 (arXiv 2206.00364).

    Args:
        sigma_max: the largest sigma, where t = t_max.
        sigma_min: the smallest sigma that the network was trained on, above 0: the last step of the spacings ``karras``
            and ``exponential`` starts there.
        levels: the largest number of steps of a grid.

    Raises:
        InputError: not 0 < sigma_min < sigma_max < inf.
    """

    sigma_max: float = 80.0
    sigma_min: float = 0.002
    levels: int = 1000
    discrete: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(
                "VE needs 0 < sigma_min < sigma_max, not "
                f"sigma_min = {self.sigma_min:g}, sigma_max = {self.sigma_max:g}.",
                parameter="sigma_min",
            )

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """The time with the most noise; equals ``sigma_max``."""
        return self.sigma_max

    @property
    def train_levels(self) -> int:  # type: ignore[override]
        """As many as ``levels``; training is continuous."""
        return self.levels

    def alpha(self, t: Tensor) -> Tensor:
        """Returns ones in the shape of t: a variance-exploding path does not scale the data."""
        return torch.ones_like(torch.as_tensor(t), dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        """Returns t, which is sigma on this path."""
        return torch.as_tensor(t).to(torch.float64)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Returns exp(-log_snr / 2), clamped to [0, sigma_max]."""
        return (-torch.as_tensor(log_snr).to(torch.float64) / 2).exp().clamp(0, self.sigma_max)

    def timestep(self, t: float) -> float:
        """Returns t, which is sigma, but at least ``sigma_min``: networks take its logarithm.

        ``Schedule.clock`` covers networks with another numbering.
        """
        return max(t, self.sigma_min)

    def between(self, t: Node, s: Node, part: float) -> Node:
        """See ``GaussianPath.between``. The coordinate sigma / alpha is t on this path."""
        return self.node(t.t + part * (s.t - t.t))


@dataclass(frozen=True)
class RectifiedFlow(GaussianPath):
    """The straight path alpha = 1 - t, sigma = t, t in [0, 1] (Liu et al. 2022, arXiv 2209.03003).

    Args:
        levels: the largest number of steps of a grid, and the factor of ``timestep``, which is levels * t.
    """

    levels: int = 1000
    t_max: float = field(init=False, default=1.0)
    discrete: bool = field(init=False, default=False)

    @property
    def train_levels(self) -> int:  # type: ignore[override]
        """As many as ``levels``; training is continuous."""
        return self.levels

    def alpha(self, t: Tensor) -> Tensor:
        """Returns 1 - t, in float64."""
        return 1 - torch.as_tensor(t).to(torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        """Returns t, which is sigma on this path, in float64."""
        return torch.as_tensor(t).to(torch.float64)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Returns 1 / (1 + exp(log_snr / 2)): the t at which log((1 - t)^2 / t^2) has this value."""
        return torch.sigmoid(-torch.as_tensor(log_snr).to(torch.float64) / 2)

    def timestep(self, t: float) -> float:
        """Returns levels * t, as SD3 expects it. ``Schedule.clock`` covers networks that expect something else."""
        return t * self.levels

    def between(self, t: Node, s: Node, part: float) -> Node:
        """See ``GaussianPath.between``. The coordinate is sigma, because this path is a straight line in sigma."""
        return self.node(t.t + part * (s.t - t.t))


# --- a path as data -------------------------------------------------------------------------------------------------


def description(path: GaussianPath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describes a path by JSON values and named float64 tensors, from which ``path_from`` rebuilds it, bit for bit.

    Raises:
        InputError: the path is not a ``TablePath``, a ``VEPath`` or a ``RectifiedFlow``.
    """
    if type(path) is TablePath:
        return {"kind": "table", "data": path.data}, {"alpha_bar": path.alpha_bar.detach().to("cpu", torch.float64)}
    if type(path) is VEPath:
        return {"kind": "ve", **{k: getattr(path, k) for k in ("sigma_max", "sigma_min", "levels")}}, {}
    if type(path) is RectifiedFlow:
        return {"kind": "flow", "levels": path.levels}, {}
    raise InputError(
        f"a {type(path).__name__} cannot be saved in a file.",
        parameter="path",
        hint="Use a TablePath, a VEPath or a RectifiedFlow.",
    )


def path_from(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GaussianPath:
    """Builds a path from what ``description`` returned.

    Args:
        about: the JSON values.
        tensors: the tensors by name; names that this kind of path does not need are ignored.

    Raises:
        InputError: the kind is unknown, a value is missing or has the wrong type, or the table is invalid.
    """
    kind = about.get("kind")
    if kind == "table":
        if "alpha_bar" not in tensors:
            raise InputError("the description of this table has no alpha_bar.", parameter="path")
        return TablePath(tensors["alpha_bar"], about.get("data"))  # type: ignore[arg-type]
    if kind == "ve":
        sigma_max, sigma_min = (_described(about, key, is_number) for key in ("sigma_max", "sigma_min"))
        return VEPath(float(sigma_max), float(sigma_min), int(_described(about, "levels", is_whole)))
    if kind == "flow":
        return RectifiedFlow(int(_described(about, "levels", is_whole)))
    raise UnknownName("path", kind, ["table", "ve", "flow"])


def _described(about: Mapping[str, Any], key: str, fits: Callable[[object], bool]) -> Any:
    value: Any = about.get(key)
    if not fits(value) or value <= 0:
        raise InputError(f"its description has {key} = {value!r}, which is not a number above 0.", parameter="path")
    return value


# --- tables ---------------------------------------------------------------------------------------------------------


def linear_alpha_bar(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Returns alpha_bar of DDPM's linear betas, [steps], float64 (Ho et al. 2020, arXiv 2006.11239, section 4)."""
    start, end = _ends(beta_start, beta_end)
    return alpha_bar_of(torch.linspace(start, end, _table_length(steps), dtype=torch.float64))


def scaled_linear_alpha_bar(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """Returns alpha_bar for linear sqrt(beta), [steps], float64: that of latent diffusion (arXiv 2112.10752)."""
    start, end = _ends(beta_start, beta_end)
    root = torch.linspace(start**0.5, end**0.5, _table_length(steps), dtype=torch.float64)
    return alpha_bar_of(root**2)


def cosine_alpha_bar(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Returns the cosine alpha_bar, [steps], float64, with every beta at most ``max_beta``.

    Source: Nichol & Dhariwal 2021, Eq. 17 (arXiv 2102.09672).
    """
    u = torch.arange(_table_length(steps) + 1, dtype=torch.float64) / steps
    f = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return alpha_bar_of((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def sigmoid_alpha_bar(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Returns alpha_bar of betas on a sigmoid from -6 to 6, [steps], float64 (Xu et al. 2022, arXiv 2203.02923)."""
    start, end = _ends(beta_start, beta_end)
    rise = torch.sigmoid(torch.linspace(-6, 6, _table_length(steps), dtype=torch.float64))
    return alpha_bar_of(rise * (end - start) + start)


def laplace_alpha_bar(steps: int = 1000, max_beta: float = 0.999) -> Tensor:
    """Returns alpha_bar for a Laplace density of the log-SNR, [steps], float64, with every beta at most ``max_beta``.

    Source: Hang et al. 2024 (arXiv 2407.03297), as diffusers implements it: the betas are computed from sqrt(alpha_bar)
    where the other schedules use alpha_bar.
    """
    u = torch.arange(_table_length(steps) + 1, dtype=torch.float64) / steps
    from_middle = 0.5 - u
    log_snr = -0.5 * torch.where(from_middle >= 0, 1.0, -1.0) * torch.log(1 - 2 * from_middle.abs() + 1e-6)
    f = torch.sigmoid(log_snr).sqrt()
    return alpha_bar_of((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Rescales a table to zero terminal SNR: sqrt(alpha_bar) is shifted and scaled so that its last entry becomes 0.

    The first entry does not change.

    Source: Lin et al. 2024, algorithm 1 (arXiv 2305.08891).
    """
    root = torch.as_tensor(alpha_bar).to(torch.float64).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    rescaled = (root - last) * (first / (first - last))
    rescaled[-1] = 0.0  # exactly 0: rounding could leave a little signal
    return rescaled**2


def alpha_bar_of(betas: Tensor) -> Tensor:
    """Returns the cumulative product of 1 - beta, float64. Raises InputError if a beta lies outside (0, 1)."""
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise InputError("every beta must lie strictly between 0 and 1.", parameter="betas")
    return torch.cumprod(1 - betas, 0)


def _ends(beta_start: float, beta_end: float) -> tuple[float, float]:
    for key, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not is_number(beta) or not 0 < beta < 1:
            raise InputError(f"{beta!r} is not a number strictly between 0 and 1.", parameter=key)
    return float(beta_start), float(beta_end)


def _table_length(steps: int) -> int:
    if not is_whole(steps) or not 2 <= steps <= MOST_LEVELS:
        raise InputError(f"a schedule has from 2 to {MOST_LEVELS} levels, not {steps}.", parameter="steps")
    return int(steps)


def ddpm_linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> TablePath:
    """Returns the path of DDPM: linear betas, and alpha = 1 at the data."""
    return TablePath(linear_alpha_bar(steps, beta_start, beta_end))
