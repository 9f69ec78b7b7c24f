"""What a solver and an inversion are: two abstract classes, side by side, because a reversible solver is both.

A solver makes one step between two nodes of a grid on a state that is a value. An inversion takes images to such a
state at the noisy end, and names the solver that brings them back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from .._utils.errors import InputError, as_plain
from .conditioning import TEXT, PromptConditioning
from .denoiser import PLAIN, Call, Denoiser, Network, held
from .grid import Grid
from .guidance import Guidance, guided
from .prediction import NO_HOLD, Hold

State = Mapping[str, Tensor]
"""A solver's state: named tensors of one shape [N, ...]; ``x`` is the sample itself. Nothing else is kept anywhere."""

Noise = Callable[[Tensor], Tensor]
"""Standard normal numbers of the shape, dtype and device of its argument, new ones each call."""

OnStep = Callable[[int, State], None]
"""Called after every step with the index of the node reached and the state there."""


def options_of(method: Any) -> dict[str, Any]:
    """What a solver or an inversion was set to: the fields that its constructor takes."""
    return {f.name: as_plain(getattr(method, f.name)) for f in fields(method) if f.init}


class Solver(ABC):
    """How one step is made. Subclasses are frozen dataclasses whose fields are their options.

    Attributes:
        name: as in the registry.
        order: of the endpoint's error in the step, fitted by ``tests/laws``; 0 for a solver with injected noise only.
        nfe: network calls a step.
        paper: where the formula comes from.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    nfe: ClassVar[int]
    paper: ClassVar[str]

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise; False unless a subclass says otherwise."""
        return False

    @property
    def options(self) -> dict[str, Any]:
        """What it was set to: plain values by the names of its fields."""
        return options_of(self)

    def first(self, grid: Grid) -> int:
        """The node that a code of this solver holds its state at; 0 unless a subclass says otherwise."""
        return 0

    def init(self, x: Tensor, grid: Grid) -> State:
        """The state at ``grid[0]`` from a lone x, [N, ...]."""
        return {"x": x}

    @abstractmethod
    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """From ``grid[i]`` to ``grid[i + 1]``."""

    def read(self, state: State) -> Tensor:
        """The sample in a state, [N, ...]."""
        return state["x"]


@dataclass(frozen=True)
class InversionProblem:
    """What an inversion works on, beside images and grid.

    Attributes:
        network: the model, without guidance; None for a bare denoiser, ``bare``.
        prompts: the two conditions of the images, N rows each.
        guidance: of the way forward.
        inversion_guidance: the weight of the way to noise, where a method leaves it free.
        noise: for methods that draw; seeded a sample.
        on_loss: called with a step, from 0, and its loss while a method tunes.
        resume: what an ``InversionInterrupted`` of the same images kept; None begins anew.
        hold: of x0, after guidance, both ways.
        call: what every call of the network is told.
        bare: a denoiser with everything in place, in place of a network.
    """

    network: Network | None
    prompts: PromptConditioning = field(default_factory=PromptConditioning)
    guidance: Guidance = field(default_factory=Guidance)
    inversion_guidance: float = 1.0
    noise: Noise | None = None
    on_loss: Callable[[int, float], None] | None = None
    resume: Mapping[str, Tensor] | None = None
    hold: Hold = NO_HOLD
    call: Call = PLAIN
    bare: Denoiser | None = None

    @staticmethod
    def of(denoise: Denoiser, noise: Noise | None = None) -> "InversionProblem":
        """A denoiser as it is, without conditions or guidance."""
        return InversionProblem(None, bare=denoise, noise=noise)

    def denoiser(self, weight: float | None = None) -> Denoiser:
        """The model under guidance (of another weight, where one is given), x0 held, its conditions in place."""
        if self.bare is not None:
            return held(self.bare, self.hold)
        guidance = self.guidance if weight is None else self.guidance.at(weight)
        return guided(self.need_network(), guidance, self.prompts, hold=self.hold, call=self.call)

    def need_network(self) -> Network:
        """The network. Raises InputError for a bare denoiser."""
        if self.network is None:
            raise InputError(
                "this method knows of prompts and guidance, which a bare denoiser does not tell; give a model.",
                parameter="method",
            )
        return self.network

    def need_text(self, name: str) -> PromptConditioning:
        """The conditions, which hold embedded prompts.

        Raises:
            InputError: a model without text.
        """
        if self.prompts.uncond is None or TEXT not in self.prompts.cond:
            raise InputError(
                f"{name!r} works on a prompt, and this model takes none; use 'ddim' or 'belm'.", parameter="method"
            )
        return self.prompts


class InversionInterrupted(KeyboardInterrupt):
    """Ctrl-C inside ``Inversion.invert``, with what the method needs to go on as if nothing had happened.

    Attributes:
        kept: tensors [N, ...], for ``InversionProblem.resume``.
        steps: of the grid, that are done.
        x: where the pivot lies at the noisy end, [N, ...].
    """

    def __init__(self, kept: Mapping[str, Tensor], steps: int, x: Tensor) -> None:
        super().__init__()
        self.kept, self.steps, self.x = kept, steps, x


class InversionResult(NamedTuple):
    """What an inversion found.

    Attributes:
        state: the solver's, at the noisy end of ``grid``.
        grid: of the way forward: the one asked for, or its cleaner part.
        prompts: for the way forward.
        extras: see ``LatentCode.extras``.
        calls: see ``LatentCode.calls``; the pipelines add them.
    """

    state: State
    grid: Grid
    prompts: PromptConditioning
    extras: Mapping[str, Tensor]
    calls: Mapping[str, Tensor] = {}


class Inversion(ABC):
    """A way from images to a state at the noisy end. Subclasses are frozen dataclasses whose fields are their options.

    Attributes:
        name: as in the registry.
        paper: where it comes from.
        exact: whether algebra, or what is kept, brings the image back, and not approximation.
        nfe: network calls a step on the way to noise, at most; a call under guidance counts twice.
        order: of the round trip's error in the step; for an exact one, of the solver that comes forward.
        floor_db: the least PSNR of a round trip, at its defaults, that the laws hold it to: data of a Gaussian and of a
            mixture of three, conditioned and guided at weight 3 both ways where the method lets it, 20 steps, a range
            of 2. Infinity: to the bit, a reversible solver's image to the nearest point of its lattice.
        inversion_guidance: the weight of the way to noise, where the method has its own; None leaves it free.
        needs: ``"text"`` for one that works on embedded prompts, ``"conditions"`` for one that works on conditions of
            any kind, empty for one that takes a bare denoiser.
        keeps: what it leaves in ``LatentCode.extras``.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    exact: ClassVar[bool] = False
    nfe: ClassVar[int] = 1
    order: ClassVar[int] = 1
    floor_db: ClassVar[float]
    inversion_guidance: ClassVar[float | None] = None
    needs: ClassVar[str] = ""
    keeps: ClassVar[tuple[str, ...]] = ()

    @property
    def options(self) -> dict[str, Any]:
        """What it was set to: plain values by the names of its fields."""
        return options_of(self)

    def amplification(self, grid: Grid) -> float:
        """How far the method itself enlarges a disturbance on the way to noise; 1 is no more than the network does."""
        return 1.0

    def part(self, grid: Grid) -> Grid:
        """The nodes of ``grid`` that the way forward takes; all of them unless a subclass says otherwise."""
        return grid

    @abstractmethod
    def solver(self) -> Solver:
        """The solver that comes forward again; a ``LatentCode`` keeps its name and options."""

    def invert(
        self, problem: InversionProblem | Denoiser, x0: Tensor, grid: Grid, on_step: OnStep | None = None
    ) -> InversionResult:
        """From images to what brings them back.

        Args:
            problem: the model with its conditions, or a denoiser as it is.
            x0: the images in the model's range, [N, ...].
            grid: S + 1 nodes.
            on_step: called after each step.

        Raises:
            InputError: a method that works on prompts, and none are given; a grid that it does not take.
            NotFinite: the network returned NaN; the step is named.
            InversionInterrupted: Ctrl-C in a method that can go on from where it is.
        """
        whole = problem if isinstance(problem, InversionProblem) else InversionProblem.of(problem)
        return self.run(whole, x0, grid, on_step)

    @abstractmethod
    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """``invert`` once the problem is whole: what a subclass states."""
