"""A model's schedule: its path, what its network predicts, the timesteps that the network takes, its grid and prior.

Flow models shift the noise levels of their grid towards the noise, the further the more pixels the image has. Every
shift is the map sigma -> f sigma / (1 + (f - 1) sigma); the shifts differ in how they compute the factor f (Esser et
al. 2024, arXiv 2403.03206, section 5.3.2).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName, is_mapping, is_number, is_plain, is_range, is_whole
from .._utils.tensors import numbers
from .grid import SPACINGS, Grid, beta, exponential, grid_at, karras, leading, linspace, make_grid
from .path import GaussianPath, Node, RectifiedFlow, TablePath
from .prediction import NO_HOLD, PREDICTIONS, SIGMA_DATA, Hold

ImageSize = int | tuple[int, int]
"""The size of an image: its number of tokens, or its (height, width) in latent pixels, where 2x2 make one token."""

# --- shifts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shift(ABC):
    """Moves the noise levels of a flow model's grid: shifts them by a factor, then stretches them to a terminal level.

    Args:
        terminal: the noise level sigma at which the last step starts, in (0, 1); None does not stretch. After the
            shift, every 1 - sigma is scaled by one factor, so that the last step starts there (``shift_terminal`` of
            diffusers). A grid of one step starts at pure noise and is not stretched.

    Raises:
        InputError: ``terminal`` lies outside (0, 1).
    """

    terminal: float | None = field(default=None, kw_only=True)
    rule: ClassVar[str]
    """How the factor is found, in one word."""
    static: ClassVar[bool] = False
    """Whether the factor is the same for every image; diffusers rounds differently if it is."""

    def __post_init__(self) -> None:
        if self.terminal is not None and not (is_number(self.terminal) and 0 < self.terminal < 1):
            raise InputError(f"{self.terminal!r} lies outside (0, 1).", parameter="terminal")

    @property
    def acts(self) -> bool:
        """Whether the shift moves any noise level."""
        return True

    @property
    def options(self) -> dict[str, str | float]:
        """The shift as plain values by name: its ``rule`` and its arguments; empty if it moves no level."""
        if not self.acts:
            return {}
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"rule": self.rule, **{name: value for name, value in named.items() if value is not None}}

    @property
    def needs_size(self) -> bool:
        """Whether the factor depends on the size of the image."""
        return False

    @abstractmethod
    def factor(self, steps: int, tokens: int | None) -> float:
        """Returns the factor f of the shift, which is above 0.

        Args:
            steps: the number of steps of the grid.
            tokens: the number of tokens of the image; may be None if ``needs_size`` is false.
        """

    def lowest(self, levels: int) -> float:
        """Returns the level, before the shift, at which the last step of a ``linspace`` grid starts."""
        return float(torch.tensor(1.0) / levels)

    def __call__(self, sigmas: Tensor, tokens: int | None = None) -> Tensor:
        """Returns the moved levels, in the dtype of ``sigmas``. A level of 1 stays 1, and the levels stay descending.

        Args:
            sigmas: the S levels at which the steps start, in (0, 1], strictly descending, [S].
            tokens: see ``factor``.
        """
        factor = self.factor(len(sigmas), tokens)
        moved = shifted(sigmas, factor) if self.static else shifted_by_odds(sigmas, factor)
        if self.terminal is None or moved[-1] >= 1:
            return moved
        signal = 1 - moved
        return 1 - signal / (signal[-1] / (1 - self.terminal))


def shifted(sigma: Tensor, factor: float) -> Tensor:
    """Returns f sigma / (1 + (f - 1) sigma) for the factor f, in the dtype of sigma; exactly 1 at sigma = 1."""
    return torch.where(sigma >= 1, 1.0, factor * sigma / (1 + (factor - 1) * sigma))


def shifted_by_odds(sigma: Tensor, factor: float) -> Tensor:
    """Returns the same as ``shifted``, computed as f / (f + (1 / sigma - 1)), whose last bits differ."""
    # torch computes f / x as f times 1 / x, which rounds twice; a tensor is divided.
    return torch.full_like(sigma, factor) / (factor + (1 / sigma - 1))


@dataclass(frozen=True)
class StaticShift(Shift):
    """Shifts the levels by the same factor for every image (SD3, Z-Image, Lumina 2).

    Args:
        value: the factor f, above 0; 1 moves no level.

    Raises:
        InputError: ``value`` is not a number above 0.
    """

    value: float = 1.0
    rule: ClassVar[str] = "static"
    static: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.value) or not self.value > 0:
            raise InputError(f"{self.value!r} is not a number above 0.", parameter="shift")

    @property
    def acts(self) -> bool:
        """Whether the shift moves any noise level: the factor is not 1, or a terminal level is set."""
        return self.value != 1 or self.terminal is not None

    def factor(self, steps: int, tokens: int | None) -> float:
        """Returns ``value``; the arguments are ignored."""
        return self.value

    def lowest(self, levels: int) -> float:
        """Returns the lowest trained level, shifted once.

        diffusers shifts the training table when it makes a scheduler, and takes the ends of its default grid from the
        shifted table. The last node of that grid is therefore shifted twice, and the images of SD3 and Sana use it.
        """
        return float(shifted(torch.tensor(1.0) / levels, self.value))


@dataclass(frozen=True)
class DynamicShift(Shift):
    """Shifts the levels by a factor that grows with the number of tokens (FLUX, Qwen-Image, CogView4).

    Args:
        kind: how the factor follows from mu. ``exponential``: f = e^mu; ``linear``: f = mu.
        base_shift, max_shift: mu at ``base_image_seq_len`` and at ``max_image_seq_len`` tokens.
        base_image_seq_len, max_image_seq_len: two different numbers of tokens. mu is extrapolated outside them.
        growth: how mu depends on the tokens. ``line``: on the line through both points; ``root``: mu = base_shift +
            max_shift sqrt(tokens / base_image_seq_len), which is the rule of the CogView4 pipeline. No scheduler config
            names that rule.

    Raises:
        InputError: ``kind`` or ``growth`` is unknown, a value is not a number, or the two lengths are equal.
    """

    kind: Literal["exponential", "linear"] = "exponential"
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    growth: Literal["line", "root"] = "line"
    rule: ClassVar[str] = "dynamic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("exponential", "linear"):
            raise UnknownName("time shift", self.kind, ["exponential", "linear"], parameter="time_shift_type")
        if self.growth not in ("line", "root"):
            raise UnknownName("growth", self.growth, ["line", "root"])
        for key in ("base_shift", "max_shift"):
            if not is_number(getattr(self, key)):
                raise InputError(f"{getattr(self, key)!r} is not a number.", parameter=key)
        for key in ("base_image_seq_len", "max_image_seq_len"):
            if not is_whole(getattr(self, key)) or getattr(self, key) < 1:
                raise InputError(f"{getattr(self, key)!r} is not a number of tokens; use 1 or more.", parameter=key)
        if self.base_image_seq_len == self.max_image_seq_len:
            raise InputError(
                f"{self.max_image_seq_len} equals base_image_seq_len; the line needs two different lengths.",
                parameter="max_image_seq_len",
            )

    @property
    def needs_size(self) -> bool:
        """Whether mu depends on the tokens: false if both shifts are equal, as for Qwen-Image-Lightning."""
        return self.growth == "root" or self.base_shift != self.max_shift

    def mu(self, tokens: int | None) -> float:
        """Returns mu for an image of this many tokens (``calculate_shift`` in the pipelines of diffusers)."""
        if not self.needs_size:
            return self.base_shift
        count = _needed(tokens)
        if self.growth == "root":
            return self.max_shift * math.sqrt(count / self.base_image_seq_len) + self.base_shift
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return count * slope + (self.base_shift - slope * self.base_image_seq_len)

    def factor(self, steps: int, tokens: int | None) -> float:
        """Returns e^mu or mu, by ``kind``. Raises InputError if a linear mu is not above 0."""
        mu = self.mu(tokens)
        if self.kind == "exponential":
            return math.exp(mu)
        if not mu > 0:
            raise InputError(
                f"{tokens} tokens give the linear shift {mu:g}, which is not above 0.", parameter="image_size"
            )
        return mu


@dataclass(frozen=True)
class Flux2Shift(Shift):
    """Shifts the levels of FLUX.2 by e^mu, where mu depends on the tokens and the steps.

    Source: ``compute_empirical_mu`` of ``Flux2Pipeline`` in diffusers. Up to 4,300 tokens, mu is linear in the number
    of steps, through two values that were fitted at 10 and at 200 steps. Above 4,300 tokens the value for 200 steps is
    used for every number of steps, so that mu jumps there: from 2.05 to 1.18 at 50 steps.
    """

    rule: ClassVar[str] = "flux2"

    @property
    def needs_size(self) -> bool:
        """Always true: mu depends on the number of tokens."""
        return True

    def mu(self, steps: int, tokens: int | None) -> float:
        """Returns mu for this many steps and tokens."""
        count = _needed(tokens)
        at_200 = 0.00016927 * count + 0.45666666
        if count > 4300:
            return at_200
        at_10 = 8.73809524e-05 * count + 1.89833333
        slope = (at_200 - at_10) / 190
        return slope * steps + (at_200 - 200 * slope)

    def factor(self, steps: int, tokens: int | None) -> float:
        """Returns e^mu."""
        return math.exp(self.mu(steps, tokens))


NO_SHIFT = StaticShift()


def packed_tokens(image_size: ImageSize) -> int:
    """Returns the number of tokens of an image. A (height, width) in latent pixels has one token for each 2x2 pixels.

    Raises:
        InputError: the size is not made of whole numbers, or is too small for one token.
    """
    sides = image_size if isinstance(image_size, (tuple, list)) else None
    if not (is_whole(image_size) if sides is None else len(sides) == 2 and all(map(is_whole, sides))):
        raise InputError(
            f"{image_size!r} is neither a number of tokens nor a (height, width) in latent pixels.",
            parameter="image_size",
        )
    tokens = int(image_size) if sides is None else math.prod(max(side, 0) // 2 for side in sides)  # type: ignore[arg-type]
    if tokens < 1:
        raise InputError(
            f"{image_size!r} is too small for one token, which covers 2x2 latent pixels.", parameter="image_size"
        )
    return tokens


def _needed(tokens: int | None) -> int:
    if tokens is None:
        raise InputError(
            "the grid of this model depends on the size of the image.",
            parameter="image_size",
            hint="Give the number of its tokens, or its (height, width) in latent pixels.",
        )
    return tokens


# --- the schedule ---------------------------------------------------------------------------------------------------

Clock = Literal["path", "sigma", "signal", "edm", "floor", "round"]
Prior = Literal["path", "euler", "edm", "unit"]
Usual = Literal["ddim", "lcm", "tcd"]
RAMPS = ("karras", "exponential", "beta")
"""The spacings that run between two noise levels, whatever the levels between them."""


@dataclass(frozen=True)
class Schedule:
    """The noise schedule of a model, what its network predicts, and how it is sampled by default.

    Args:
        path: the path that the model was trained on.
        prediction: what the network predicts: ``eps``, ``x0``, ``v``, ``flow``, ``score``, ``edm`` or ``edm_v``; see
            ``core.prediction``.
        spacing: the default spacing of its grid, a key of ``SPACINGS``.
        offset: ``steps_offset`` of diffusers, for the spacing ``leading``.
        hold: how the predicted x0 is limited to the range of images.
        shift: how the levels of the grid are shifted; only on rectified flow.
        clock: which timestep the network takes. ``path``: ``path.timestep(t)``; ``sigma``: sigma; ``signal``:
            1 - sigma; ``edm``: log(sigma / alpha) / 4, the c_noise of Karras et al. 2022; ``floor`` and ``round``: the
            whole number below or nearest to ``path.timestep(t)``, as some schedulers of diffusers give it.
        prior: the standard deviation of the noise that sampling starts from. ``path``: 1 on a table, else the sigma of
            the first node. ``euler``: as in diffusers' Euler schedulers, the sigma of the first node for ``trailing``
            and ``linspace``, and 1 for ``leading``. ``edm``: sqrt(alpha^2 + sigma^2) of the first node. ``unit``: 1.
        origin: ``original_inference_steps`` of diffusers, for the spacing ``lcm``.
        solver: the solver that ``sample`` uses by default: ``ddim``, or that of a distilled model, ``lcm`` or ``tcd``.
        solver_options: the options of that solver that belong to the model, such as the ``scaling`` of ``lcm``; by
            default its usual ones.
        sigma_data: the standard deviation of the data, for the predictions ``edm`` and ``edm_v``.
        rho: the root of the spacing ``karras``.
        span: the spacing whose first and last step bound those of ``RAMPS``; by default they span the whole path.
            Diffusers' Euler and flow schedulers take the ends of their ``timestep_spacing``.
        data_counts: whether the data is one of the evenly spaced points of ``linspace`` and ``leading``, as in
            diffusers' DPM-Solver schedulers; see ``core.grid``.
        ends: the sigmas, before the shift, from which and towards which the steps of ``trailing`` are even on
            rectified flow.

    Raises:
        InputError: a name is unknown, a number is out of range, or there is a shift on a path other than rectified
            flow.
    """

    path: GaussianPath
    prediction: str
    spacing: str = "trailing"
    offset: int = 0
    hold: Hold = NO_HOLD
    shift: Shift = NO_SHIFT
    clock: Clock = "path"
    prior: Prior = "path"
    origin: int = 50
    solver: Usual = "ddim"
    sigma_data: float = SIGMA_DATA
    rho: float = 7.0
    span: str = ""
    data_counts: bool = False
    ends: tuple[float, float] = (1.0, 0.0)
    solver_options: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)

    def __post_init__(self) -> None:
        for kind, known in (
            ("prediction", PREDICTIONS),
            ("spacing", SPACINGS),
            ("clock", get_args(Clock)),
            ("prior", get_args(Prior)),
            ("solver", get_args(Usual)),
        ):
            name = getattr(self, kind)
            if not isinstance(name, str) or name not in known:
                raise UnknownName(kind, name, known)
        spans = [name for name in SPACINGS if name not in RAMPS]
        span = cast("object", self.span)
        if not isinstance(span, str) or span not in ("", *spans):
            raise UnknownName("span", self.span, spans)
        for key in ("sigma_data", "rho"):
            if not is_number(getattr(self, key)) or not getattr(self, key) > 0:
                raise InputError(f"{getattr(self, key)!r} is not a number above 0.", parameter=key)
        if not is_range(self.ends) or not 0 <= self.ends[1] < self.ends[0] <= 1:
            raise InputError(f"{self.ends!r} are not two sigmas with 1 >= first > second >= 0.", parameter="ends")
        options: object = self.solver_options
        if not is_mapping(options) or not all(isinstance(k, str) and is_plain(v) for k, v in options.items()):
            raise InputError(
                f"{self.solver_options!r} are not options of a solver by name, with finite values.",
                parameter="solver_options",
            )
        if self.shift.acts and not isinstance(self.path, RectifiedFlow):
            raise InputError(
                f"a shift moves the levels of rectified flow only, not of a {type(self.path).__name__}.",
                parameter="shift",
            )

    def timestep(self, node: Node) -> float:
        """Returns the timestep that the network takes at a node, in its own numbering (see ``clock``).

        Where there is no noise, ``edm`` takes the least level that the network was trained on.

        Raises:
            InputError: the clock is ``edm``, and no signal is left at the node, where log(sigma / alpha) is infinite.
        """
        if self.clock == "sigma":
            return node.sigma
        if self.clock == "signal":
            return 1 - node.sigma
        if self.clock == "edm":
            return math.log(self._trained_ratio(node)) / 4
        timestep = self.path.timestep(node.t)
        if self.clock == "path":
            return timestep
        whole = math.floor(timestep) if self.clock == "floor" else round(timestep)
        return float(min(whole, self.path.train_levels - 1))

    def _trained_ratio(self, node: Node) -> float:
        if node.ratio == math.inf:
            raise InputError(
                f"the network takes the logarithm of sigma / alpha, which is infinite at t = {node.t:g}, where no "
                "signal is left (alpha = 0); use 'leading'.",
                parameter="spacing",
            )
        least = getattr(self.path, "sigma_min", None) or self.path.node(self.path.t_max / self.path.levels).ratio
        return node.ratio or least

    def input_scale(self, node: Node) -> float:
        """Returns the factor of x that the network takes as its input.

        For ``edm`` and ``edm_v`` it is c_in = 1 / sqrt(sigma^2 + d^2 alpha^2) with d = ``sigma_data``, which gives the
        input the standard deviation 1 (Karras et al. 2022, arXiv 2206.00364, Table 1). For others it is 1.
        """
        if self.prediction not in ("edm", "edm_v"):
            return 1.0
        return 1 / math.hypot(node.sigma, self.sigma_data * node.alpha)

    def predicts(self, usual: Clock | None = None) -> str:
        """Returns what the network is asked for, in one text, for the fingerprint of a model.

        It is the prediction, with ``sigma_data`` where that matters, and the clock unless it is the usual one: under
        another clock the same weights are another model, which takes other timesteps.

        Args:
            usual: the clock of the network's family, which no scheduler changes. By default it is ``edm`` for the
                predictions ``edm`` and ``edm_v``, and ``path`` for others.
        """
        preconditioned = self.prediction in ("edm", "edm_v")
        expected = usual or ("edm" if preconditioned else "path")
        said = f"{self.prediction} {self.sigma_data:g}" if preconditioned else self.prediction
        return said if self.clock == expected else f"{said} {self.clock}"

    def prior_std(self, grid: Grid) -> float:
        """Returns the standard deviation of x at ``grid[0]`` when sampling starts from noise.

        This is ``init_noise_sigma`` of diffusers, expressed for x = alpha x0 + sigma eps. The Euler, Euler ancestral,
        Heun, LMS and both KDPM2 schedulers work on x / alpha. For ``trailing`` and ``linspace`` they start from
        sigma_max, which is the sigma of the first node here (0.99767 on Stable Diffusion's table). For ``leading`` they
        start from sqrt(sigma_max^2 + 1), which is 1 here. A grid whose spacing diffusers does not have is treated like
        the default spacing of this schedule.
        """
        first = grid[0]
        if self.prior == "edm":
            return math.hypot(first.alpha, first.sigma)
        if self.prior == "unit":
            return 1.0
        named = grid.spacing in ("leading", "trailing", "linspace", *RAMPS)
        spacing = grid.spacing if named else self.spacing
        starts_low = (self.span if spacing in RAMPS else spacing) == "leading"
        if isinstance(self.path, TablePath) and (self.prior == "path" or starts_low):
            return 1.0
        return first.sigma

    def grid(
        self,
        steps: int = 50,
        spacing: str | Sequence[float] | None = None,
        image_size: ImageSize | None = None,
    ) -> Grid:
        """Returns the grid of the model for S steps, shifted as its scheduler shifts it.

        With the spacings ``linspace`` and ``trailing``, the sigmas of a flow model are those of diffusers' scheduler to
        the last bit, which are float32 numbers: so the network takes the timesteps that it takes in its own pipeline.

        Args:
            steps: the number of steps S, 1 <= S <= ``path.levels``. Ignored if ``spacing`` is a list.
            spacing: a spacing other than the default, or a list of t. A list is used as it is, without a shift.
            image_size: the number of tokens of the image, or its (height, width) in latent pixels. A shift that depends
                on the size needs it; other shifts ignore it.

        Raises:
            InputError: as for ``make_grid``, or the shift needs an image size and there is none.
        """
        spacing = self.spacing if spacing is None else spacing
        named = isinstance(spacing, str)  # asked first: a comparison of an array with a name is an array
        if named and spacing in RAMPS:
            return self._ramp(steps, spacing, image_size)
        if named and spacing == "leading":
            plain = leading(self.path, steps, self.offset, data_counts=self.data_counts)
        elif named and spacing == "linspace":
            plain = linspace(self.path, steps, data_counts=self.data_counts)
        else:
            plain = make_grid(self.path, steps, spacing, origin=self.origin)
        if not isinstance(self.path, RectifiedFlow) or not named:
            return plain
        sigmas = _starts(plain)
        if spacing == "linspace":
            sigmas = self._from_table(steps)
        elif spacing == "trailing" and self.ends == (1.0, 0.0):
            sigmas = sigmas.float()
        elif spacing == "trailing":
            first, last = self.ends
            sigmas = first + (last - first) * torch.arange(steps, dtype=torch.float64) / steps
        moved = self._shifted(sigmas, image_size)
        if spacing in ("linspace", "trailing"):  # those of diffusers; levels of others may be nearer than float32
            moved = moved.float()
        return grid_at(self.path, numbers(moved.double()), spacing)

    def _shifted(self, sigmas: Tensor, image_size: ImageSize | None) -> Tensor:
        """Returns the levels after the shift, for an image of this size."""
        tokens = None if image_size is None else packed_tokens(image_size)
        return self.shift(sigmas, tokens) if self.shift.acts else sigmas

    def _ramp(self, steps: int, spacing: str, image_size: ImageSize | None) -> Grid:
        """Returns the grid of a spacing of ``RAMPS``, between the ends of ``span`` or of the whole path."""
        ends = None
        if self.span:
            between = self.grid(steps, self.span, image_size)
            ends = between[0], between[-2]
        if spacing == "karras":
            made = karras(self.path, steps, self.rho, ends)
        else:
            made = (exponential if spacing == "exponential" else beta)(self.path, steps, ends)
        if self.span or not self.shift.acts:  # the ends of a span are shifted already
            return made
        return grid_at(self.path, numbers(self._shifted(_starts(made), image_size)), spacing)

    def _from_table(self, steps: int) -> Tensor:
        """Returns the S levels of a flow model's ``linspace`` grid before the shift, float64.

        The ends are those of the training table, not of the path. diffusers computes these levels in float64, and those
        that a pipeline gives to its scheduler in float32.
        """
        levels = self.path.levels
        gap = (self.shift.lowest(levels) * levels - levels) / max(steps - 1, 1)
        return (levels + gap * torch.arange(steps, dtype=torch.float64)) / levels


def _starts(grid: Grid) -> Tensor:
    """Returns the t at which the steps of a grid start, float64 [S]."""
    return torch.tensor([node.t for node in grid.nodes[:-1]], dtype=torch.float64)
