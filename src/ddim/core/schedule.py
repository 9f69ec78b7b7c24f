"""A model's schedule: its path, what its network predicts and is told, its own grid, and its prior.

A shift moves the noise levels of a flow model's grid towards the noise, as more pixels ask for. All of them are one
map, sigma -> f sigma / (1 + (f - 1) sigma), and differ in where the factor f comes from (Esser et al. 2024, arXiv
2403.03206, section 5.3.2).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from .._utils.errors import InputError, UnknownName, is_number, is_whole
from .grid import SPACINGS, Grid, grid_at, make_grid
from .path import GaussianPath, Node, RectifiedFlow, TablePath
from .prediction import NO_HOLD, PREDICTIONS, Hold

ImageSize = int | tuple[int, int]
"""The size of an image: its number of packed tokens, or its (height, width) in latent pixels, packed two by two."""

# --- shifts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shift(ABC):
    """How the noise levels of a flow model's grid are moved: shifted by a factor, then stretched to a last level.

    Args:
        terminal: the level that the last step begins at, in (0, 1): after the shift, every 1 - sigma is scaled so that
            it is reached (diffusers' ``shift_terminal``). A grid of one step, which begins at pure noise, keeps it.

    Raises:
        InputError: a terminal level outside (0, 1).
    """

    terminal: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.terminal is not None and not (is_number(self.terminal) and 0 < self.terminal < 1):
            raise InputError(f"{self.terminal!r} lies outside (0, 1).", parameter="terminal")

    @property
    def acts(self) -> bool:
        """Whether it moves any level."""
        return True

    @property
    def needs_size(self) -> bool:
        """Whether the factor depends on the size of the image."""
        return False

    @abstractmethod
    def factor(self, steps: int, tokens: int | None) -> float:
        """f, above 0.

        Args:
            steps: S of the grid.
            tokens: the packed tokens of the image; None will do where ``needs_size`` is false.
        """

    def lowest(self, levels: int) -> float:
        """The level, not yet shifted, that the spacing ``linspace`` ends on: the first of the training table."""
        return 1 / levels

    def __call__(self, sigmas: Sequence[float], tokens: int | None = None) -> list[float]:
        """The levels moved; 1 stays 1, and strictly falling levels stay strictly falling.

        Args:
            sigmas: the S levels that steps begin at, in (0, 1], falling.
            tokens: as for ``factor``.
        """
        factor = self.factor(len(sigmas), tokens)
        moved = [shifted(sigma, factor) for sigma in sigmas]
        if self.terminal is None or moved[-1] >= 1:
            return moved
        scale = (1 - moved[-1]) / (1 - self.terminal)
        return [1 - (1 - sigma) / scale for sigma in moved]


def shifted(sigma: float, factor: float) -> float:
    """f sigma / (1 + (f - 1) sigma), which is f / (f + 1 / sigma - 1); exactly 1 at 1, whatever f."""
    return 1.0 if sigma >= 1 else factor * sigma / (1 + (factor - 1) * sigma)


@dataclass(frozen=True)
class StaticShift(Shift):
    """The same factor for every image (SD3, Z-Image, Lumina 2).

    Args:
        value: f, above 0; 1 moves nothing.

    Raises:
        InputError: a value that is no number above 0.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.value) or not self.value > 0:
            raise InputError(f"{self.value!r} is not a number above 0.", parameter="shift")

    @property
    def acts(self) -> bool:
        """Whether it moves any level."""
        return self.value != 1 or self.terminal is not None

    def factor(self, steps: int, tokens: int | None) -> float:
        """The value."""
        return self.value

    def lowest(self, levels: int) -> float:
        """The table's first level, shifted already.

        diffusers shifts its table when the scheduler is made and takes the ends of the default grid from there, so that
        the grid's last node is shifted twice. What SD3 and Sana draw has that grid.
        """
        return shifted(1 / levels, self.value)


@dataclass(frozen=True)
class DynamicShift(Shift):
    """A factor that grows with the number of tokens by way of mu (FLUX, Qwen-Image, CogView4).

    Args:
        kind: ``exponential``: f = e^mu; ``linear``: f = mu.
        base_shift, max_shift: mu at ``base_image_seq_len`` and at ``max_image_seq_len`` tokens.
        base_image_seq_len, max_image_seq_len: two different numbers of tokens; mu goes on beyond them.
        growth: ``line``: mu on the line through both; ``root``: mu = base_shift + max_shift sqrt(tokens /
            base_image_seq_len), the rule of CogView4's pipeline, which no scheduler's config names.

    Raises:
        InputError: an unknown kind or growth; numbers that are none, or two equal lengths.
    """

    kind: Literal["exponential", "linear"] = "exponential"
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    growth: Literal["line", "root"] = "line"

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
                f"{self.max_image_seq_len} is base_image_seq_len too; no line leads through one length.",
                parameter="max_image_seq_len",
            )

    @property
    def needs_size(self) -> bool:
        """Whether mu depends on the tokens: not where both shifts are equal (Qwen-Image-Lightning)."""
        return self.growth == "root" or self.base_shift != self.max_shift

    def mu(self, tokens: int | None) -> float:
        """mu for an image of this many packed tokens (``calculate_shift`` of diffusers' pipelines)."""
        if not self.needs_size:
            return self.base_shift
        count = _needed(tokens)
        if self.growth == "root":
            return self.max_shift * math.sqrt(count / self.base_image_seq_len) + self.base_shift
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return count * slope + (self.base_shift - slope * self.base_image_seq_len)

    def factor(self, steps: int, tokens: int | None) -> float:
        """e^mu or mu. Raises InputError for a linear mu that is not above 0."""
        mu = self.mu(tokens)
        if self.kind == "exponential":
            return math.exp(mu)
        if not mu > 0:
            raise InputError(
                f"{tokens} tokens lead to the linear shift {mu:g}, which is not above 0.", parameter="image_size"
            )
        return mu


@dataclass(frozen=True)
class Flux2Shift(Shift):
    """FLUX.2's factor e^mu, with mu by tokens and steps (``compute_empirical_mu`` of diffusers' ``Flux2Pipeline``).

    Up to 4,300 tokens mu is a line in the number of steps through what was fitted at 10 and at 200 of them; beyond, the
    fit at 200 holds for every number. mu jumps there, from 2.05 to 1.18 at 50 steps.
    """

    @property
    def needs_size(self) -> bool:
        """Always."""
        return True

    def mu(self, steps: int, tokens: int | None) -> float:
        """mu for this many steps and packed tokens."""
        count = _needed(tokens)
        at_200 = 0.00016927 * count + 0.45666666
        if count > 4300:
            return at_200
        at_10 = 8.73809524e-05 * count + 1.89833333
        slope = (at_200 - at_10) / 190
        return slope * steps + (at_200 - 200 * slope)

    def factor(self, steps: int, tokens: int | None) -> float:
        """e^mu."""
        return math.exp(self.mu(steps, tokens))


NO_SHIFT = StaticShift()


def packed_tokens(image_size: ImageSize) -> int:
    """How many tokens an image has: a whole number as it is, (height, width) in latent pixels packed two by two.

    Raises:
        InputError: numbers that are not whole, or too small for one token.
    """
    sides = image_size if isinstance(image_size, (tuple, list)) else None
    if not (is_whole(image_size) if sides is None else len(sides) == 2 and all(map(is_whole, sides))):
        raise InputError(
            f"{image_size!r} is neither a number of tokens nor a (height, width) in latent pixels.",
            parameter="image_size",
        )
    tokens = int(image_size) if sides is None else math.prod(max(side, 0) // 2 for side in sides)  # type: ignore[arg-type]
    if tokens < 1:
        raise InputError(f"{image_size!r} leaves no token.", parameter="image_size")
    return tokens


def _needed(tokens: int | None) -> int:
    if tokens is None:
        raise InputError(
            "the grid of this model depends on the size of the image.",
            parameter="image_size",
            hint="Give its packed tokens, or its (height, width) in latent pixels.",
        )
    return tokens


# --- the schedule ---------------------------------------------------------------------------------------------------

Clock = Literal["path", "sigma", "signal"]
Prior = Literal["path", "euler", "edm"]


@dataclass(frozen=True)
class Schedule:
    """What a model knows of time.

    Args:
        path: where its x lie.
        prediction: what its network predicts: ``eps``, ``x0``, ``v`` or ``flow``.
        spacing: of its own grid, one of ``SPACINGS``.
        offset: of the spacing ``leading``: diffusers' ``steps_offset``.
        hold: how x0 is held to the range of pictures.
        shift: how its grid is moved; flow models only.
        clock: what ``timestep`` says: ``path``: ``path.label(t)``; ``sigma``: sigma; ``signal``: 1 - sigma.
        prior: the standard deviation of noise that sampling starts from. ``path``: 1 on a table, else the sigma of the
            first node. ``euler``: that of the Euler kind of schedulers, the first sigma after ``trailing`` and
            ``linspace``, 1 after ``leading``. ``edm``: sqrt(alpha^2 + sigma^2) of the first node.

    Raises:
        InputError: an unknown name, or a shift on a path other than rectified flow.
    """

    path: GaussianPath
    prediction: str
    spacing: str = "trailing"
    offset: int = 0
    hold: Hold = NO_HOLD
    shift: Shift = NO_SHIFT
    clock: Clock = "path"
    prior: Prior = "path"

    def __post_init__(self) -> None:
        for kind, known in (
            ("prediction", PREDICTIONS),
            ("spacing", SPACINGS),
            ("clock", get_args(Clock)),
            ("prior", get_args(Prior)),
        ):
            if getattr(self, kind) not in known:
                raise UnknownName(kind, getattr(self, kind), known)
        if self.shift.acts and not isinstance(self.path, RectifiedFlow):
            raise InputError(
                f"a shift moves the levels of rectified flow only, not of a {type(self.path).__name__}.",
                parameter="shift",
            )

    def timestep(self, node: Node) -> float:
        """What the network is told at a node, in its own numbering (see ``clock``)."""
        if self.clock == "path":
            return self.path.label(node.t)
        return node.sigma if self.clock == "sigma" else 1 - node.sigma

    def prior_std(self, grid: Grid) -> float:
        """The standard deviation of x at ``grid[0]`` when sampling starts from noise.

        It is what diffusers' ``init_noise_sigma`` is in the view x = alpha x0 + sigma eps. Euler, Euler ancestral,
        Heun, LMS and both KDPM2 start from sigma_max in x / alpha after ``trailing`` and ``linspace``: that is the
        first sigma here, 0.99767 on Stable Diffusion's table. After ``leading`` they start from sqrt(sigma_max^2 + 1),
        which is 1 here. A grid that diffusers has no name for starts as the schedule's own spacing does.
        """
        first = grid[0]
        if self.prior == "edm":
            return math.hypot(first.alpha, first.sigma)
        named = grid.spacing in ("leading", "trailing", "linspace", "karras")
        leading = (grid.spacing if named else self.spacing) == "leading"
        if isinstance(self.path, TablePath) and (self.prior == "path" or leading):
            return 1.0
        return first.sigma

    def grid(
        self,
        steps: int = 50,
        spacing: str | Sequence[float] | None = None,
        image_size: ImageSize | None = None,
    ) -> Grid:
        """The model's own grid of S steps, shifted as its scheduler shifts it.

        Args:
            steps: S, 1 <= S <= ``path.levels``; ignored for an explicit list.
            spacing: another spacing than the model's own, or a list of t, which is used as it is, without a shift.
            image_size: the image's packed tokens, or its (height, width) in latent pixels, which are packed two by two;
                needed by a dynamic shift, and ignored by the others.

        Raises:
            InputError: as ``make_grid``; no image size where the shift needs one.
        """
        spacing = self.spacing if spacing is None else spacing
        plain = make_grid(self.path, steps, spacing, offset=self.offset if spacing == "leading" else 0)
        if not self.shift.acts or not isinstance(spacing, str):
            return plain
        times = [node.t for node in plain.nodes[:-1]]
        if spacing == "linspace":
            gap = (1 - self.shift.lowest(self.path.levels)) / max(steps - 1, 1)
            times = [1 - i * gap for i in range(steps)]
        tokens = None if image_size is None else packed_tokens(image_size)
        return grid_at(self.path, self.shift(times, tokens), spacing)
