"""Gaussian paths x = alpha(t) x0 + sigma(t) eps, with t = 0 at the data.

One time axis for every model: ``t`` runs from 0 (data) to ``t_max`` (noisiest). For a DDPM table it is the
t of the papers, so alpha(0) = 1 and alpha(t) = sqrt(alpha_bar_t) for t = 1..T; a diffusers timestep is
``path.label(t) = t - 1``. For tables whose data end is their first entry (``set_alpha_to_one=False``, Stable
Diffusion) t counts the diffusers timesteps themselves, and T is one less than the table is long.

Everything here is float64 and needs torch only.
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
"""The longest table: a hundred times the usual one, and small enough for any memory."""


@dataclass(frozen=True, slots=True)
class Node:
    """One point of a grid: the time ``t``, and what x is made of there, ``alpha x0 + sigma eps``."""

    t: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha, the time of the ODE in Eq. 14 of Song et al. 2021 (arXiv 2010.02502); inf at alpha = 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


class GaussianPath(ABC):
    """Signal and noise coefficients as functions of a real time t in [0, t_max].

    Attributes:
        t_max: the noisiest time.
        levels: how many noise levels a grid may use; S steps need S <= levels.
        train_levels: the length of the training table, from which the ``leading`` and ``trailing`` strides come.
        discrete: whether grids keep to whole t (the network was trained on these only).
    """

    t_max: float
    levels: int
    train_levels: int
    discrete: bool

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient at t (any shape, any real dtype), float64, same shape."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient at t (any shape, any real dtype), float64, same shape."""

    @abstractmethod
    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The t at which ``log_snr(t)`` has this value, clamped to [0, t_max]; float64, same shape."""

    @abstractmethod
    def label(self, t: float) -> float:
        """What the network is told at t, in its own numbering."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at t; +inf at noise-free data, -inf where no signal is left."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def node(self, t: float) -> Node:
        """The node at t in [0, t_max]. Raises InputError outside."""
        if not 0 <= t <= self.t_max:
            raise InputError(f"{t:g} lies outside this path; it runs from 0 to {self.t_max:g}.", parameter="t")
        at = torch.tensor([t], dtype=torch.float64)
        return Node(float(t), float(self.alpha(at)[0]), float(self.sigma(at)[0]))

    def between(self, t: Node, s: Node, part: float) -> Node:
        """The node that lies ``part`` of the way from t to s in the path's own coordinate.

        The coordinate is sigma / alpha, the time of the ODE in x / alpha. Where it is infinite at one end (alpha = 0),
        sigma / (alpha + sigma) takes its place, which is the sigma of the same ratio on rectified flow.

        Args:
            t, s: two nodes of this path with different ratios, in either order.
            part: strictly between 0 and 1.
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
    """A variance-preserving path through a table of alpha_bar (alpha^2 + sigma^2 = 1).

    Between entries the angle atan2(sigma, alpha) is linear in t: finite at both ends, also at zero terminal SNR.

    Args:
        alpha_bar: strictly falling values in [0, 1), length T (``alphas_cumprod``); float64.
        data: ``"one"``: t = 0 has alpha 1 and t = k is entry k-1; ``"first"``: t = k is entry k, data is entry 0.
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
            raise InputError("it must fall strictly from at most 1 to at least 0.", parameter="alpha_bar")
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
        """cos of the angle at t: sqrt(alpha_bar_t) at whole t."""
        angle = self._angle_at(t)
        return torch.where(angle >= math.pi / 2, torch.zeros_like(angle), angle.cos())

    def sigma(self, t: Tensor) -> Tensor:
        """sin of the angle at t: sqrt(1 - alpha_bar_t) at whole t."""
        return self._angle_at(t).sin()

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Inverse of log_snr, by the table's angles."""
        log_snr = torch.as_tensor(log_snr).to("cpu", torch.float64)
        angle = torch.atan2(torch.ones_like(log_snr), (log_snr / 2).exp())
        high = torch.searchsorted(self._angle, angle.contiguous()).clamp(1, self.levels)
        start, end = self._angle[high - 1], self._angle[high]
        return (high - 1 + (angle - start) / (end - start)).clamp(0, self.t_max)

    def label(self, t: float) -> float:
        """The diffusers timestep: t - 1 (``data="one"``) or t; never below 0, the first one trained."""
        return max(t - 1 if self.data == "one" else t, 0.0)


@dataclass(frozen=True)
class VEPath(GaussianPath):
    """Variance-exploding path in Karras et al.'s time: alpha = 1, sigma = t in [0, sigma_max] (arXiv 2206.00364)."""

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
        """The noisiest time, sigma_max."""
        return self.sigma_max

    @property
    def train_levels(self) -> int:  # type: ignore[override]
        """As many as ``levels``; training is continuous."""
        return self.levels

    def alpha(self, t: Tensor) -> Tensor:
        """1 everywhere."""
        return torch.ones_like(torch.as_tensor(t), dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        """t itself."""
        return torch.as_tensor(t).to(torch.float64)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """exp(-log_snr / 2)."""
        return (-torch.as_tensor(log_snr).to(torch.float64) / 2).exp().clamp(0, self.sigma_max)

    def label(self, t: float) -> float:
        """sigma; a network with another clock maps it in its adapter."""
        return t

    def between(self, t: Node, s: Node, part: float) -> Node:
        """As ``GaussianPath.between``; sigma / alpha is t itself here."""
        return self.node(t.t + part * (s.t - t.t))


@dataclass(frozen=True)
class RectifiedFlow(GaussianPath):
    """The straight path alpha = 1 - t, sigma = t, t in [0, 1] (Liu et al. 2022, arXiv 2209.03003).

    Args:
        levels: how many steps a grid may have at most; also the network's clock, ``label(t) = levels * t``.
    """

    levels: int = 1000
    t_max: float = field(init=False, default=1.0)
    discrete: bool = field(init=False, default=False)

    @property
    def train_levels(self) -> int:  # type: ignore[override]
        """As many as ``levels``; training is continuous."""
        return self.levels

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - torch.as_tensor(t).to(torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return torch.as_tensor(t).to(torch.float64)

    def t_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """1 / (1 + exp(log_snr / 2))."""
        return torch.sigmoid(-torch.as_tensor(log_snr).to(torch.float64) / 2)

    def label(self, t: float) -> float:
        """levels * t: SD3 networks are told t in thousandths; ``Schedule.clock`` names other clocks."""
        return t * self.levels

    def between(self, t: Node, s: Node, part: float) -> Node:
        """As ``GaussianPath.between``, but the coordinate is sigma, in which this path is straight."""
        return self.node(t.t + part * (s.t - t.t))


# --- a path as data -------------------------------------------------------------------------------------------------


def description(path: GaussianPath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A path as plain JSON values and named float64 tensors, from which ``path_from`` makes the same path to the bit.

    Raises:
        InputError: a path of another class than ``TablePath``, ``VEPath`` and ``RectifiedFlow``.
    """
    if type(path) is TablePath:
        return {"kind": "table", "data": path.data}, {"alpha_bar": path.alpha_bar.detach().to("cpu", torch.float64)}
    if type(path) is VEPath:
        return {"kind": "ve", **{k: getattr(path, k) for k in ("sigma_max", "sigma_min", "levels")}}, {}
    if type(path) is RectifiedFlow:
        return {"kind": "flow", "levels": path.levels}, {}
    raise InputError(
        f"a {type(path).__name__} cannot be written down.",
        parameter="path",
        hint="Use a TablePath, a VEPath or a RectifiedFlow.",
    )


def path_from(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GaussianPath:
    """The path that ``description`` wrote down.

    Args:
        about: the plain values.
        tensors: the tensors; names that the kind of path does not need are ignored.

    Raises:
        InputError: an unknown kind, a value that is missing or of the wrong kind, or a table that is none.
    """
    kind = about.get("kind")
    if kind == "table":
        if "alpha_bar" not in tensors:
            raise InputError("a table is described without its alpha_bar.", parameter="path")
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
        raise InputError(f"it is described with {key} = {value!r}, which is no number above 0.", parameter="path")
    return value


# --- tables ---------------------------------------------------------------------------------------------------------


def linear_alpha_bar(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """alpha_bar (shape [steps], float64) of DDPM's linear betas (Ho et al. 2020, arXiv 2006.11239, section 4)."""
    start, end = _ends(beta_start, beta_end)
    return alpha_bar_of(torch.linspace(start, end, _table_length(steps), dtype=torch.float64))


def scaled_linear_alpha_bar(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """alpha_bar (shape [steps], float64) for sqrt(beta) linear: latent diffusion's schedule (arXiv 2112.10752)."""
    start, end = _ends(beta_start, beta_end)
    root = torch.linspace(start**0.5, end**0.5, _table_length(steps), dtype=torch.float64)
    return alpha_bar_of(root**2)


def cosine_alpha_bar(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """alpha_bar (shape [steps], float64) of Nichol & Dhariwal 2021, Eq. 17 (arXiv 2102.09672), betas capped."""
    u = torch.arange(_table_length(steps) + 1, dtype=torch.float64) / steps
    f = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return alpha_bar_of((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def sigmoid_alpha_bar(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """alpha_bar (shape [steps], float64) of betas on a sigmoid from -6 to 6 (Xu et al. 2022, arXiv 2203.02923)."""
    start, end = _ends(beta_start, beta_end)
    rise = torch.sigmoid(torch.linspace(-6, 6, _table_length(steps), dtype=torch.float64))
    return alpha_bar_of(rise * (end - start) + start)


def laplace_alpha_bar(steps: int = 1000, max_beta: float = 0.999) -> Tensor:
    """alpha_bar (shape [steps], float64) of a Laplace density of log SNR as diffusers has it, betas capped.

    Source: Hang et al. 2024 (arXiv 2407.03297); sqrt(alpha_bar) stands where alpha_bar does elsewhere, as in diffusers.
    """
    u = torch.arange(_table_length(steps) + 1, dtype=torch.float64) / steps
    from_middle = 0.5 - u
    log_snr = -0.5 * torch.where(from_middle >= 0, 1.0, -1.0) * torch.log(1 - 2 * from_middle.abs() + 1e-6)
    f = torch.sigmoid(log_snr).sqrt()
    return alpha_bar_of((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """The table shifted and scaled in sqrt(alpha_bar) so that its last entry is 0 and its first is kept.

    Source: Lin et al. 2024, algorithm 1 (arXiv 2305.08891).
    """
    root = torch.as_tensor(alpha_bar).to(torch.float64).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    rescaled = (root - last) * (first / (first - last))
    rescaled[-1] = 0.0  # rounding must not leave signal behind
    return rescaled**2


def alpha_bar_of(betas: Tensor) -> Tensor:
    """The cumulative product of 1 - beta, float64. Raises InputError for a beta outside (0, 1)."""
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
    """DDPM's path: linear betas, data end alpha = 1."""
    return TablePath(linear_alpha_bar(steps, beta_start, beta_end))
