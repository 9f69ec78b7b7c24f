"""The abstract classes of solvers and inversions. They share a module because a reversible solver is both.

A solver makes one step between two nodes of a grid: it takes a state and returns the next state. An inversion takes
images to a state at the noisy end of a grid, and names the solver that reconstructs the images from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from .._utils.errors import InputError, as_plain
from .._utils.registry import check_options
from .conditioning import TEXT, Conditioning, PromptConditioning
from .denoiser import PLAIN, Call, Denoiser, Network, with_hold
from .grid import Grid
from .guidance import Guidance, guided
from .prediction import NO_HOLD, Hold

State = Mapping[str, Tensor]
"""The state of a solver: named tensors of one shape [N, ...], among them the sample ``x``. A solver keeps nothing else
between steps."""

Noise = Callable[[Tensor], Tensor]
"""A source of noise: returns new standard normal numbers in the shape, dtype and device of its argument."""

OnStep = Callable[[int, State], None]
"""A function that is called after every step with the index of the node reached and the state there."""


def options_of(method: Any) -> dict[str, Any]:
    """Returns the arguments that a solver or an inversion was constructed with, by name, as plain values."""
    return {f.name: as_plain(getattr(method, f.name)) for f in fields(method) if f.init}


class Solver(ABC):
    """Abstract base class of all solvers. Subclasses are frozen dataclasses whose fields are their options.

    Attributes:
        name: the key in the registry.
        order: the order of the error at the data end in the step size, which ``tests/laws`` verifies by a fit; 0 for a
            solver that always adds noise.
        nfe: the number of network calls per step.
        extra_calls: the number of network calls that a run makes besides.
        paper: the source of the formula.
        asks_data: whether it calls the network at the data node; without noise there, a predicted x0 determines no eps.
        asks_between: whether it calls the network between two nodes of the grid, where timesteps are no whole numbers.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    nfe: ClassVar[int]
    extra_calls: ClassVar[int] = 0
    paper: ClassVar[str]
    asks_data: ClassVar[bool] = False
    asks_between: ClassVar[bool] = False

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise. False by default."""
        return False

    def __post_init__(self) -> None:
        """Raises InputError for an option of the wrong type. Subclasses check the ranges."""
        check_options(self)

    @property
    def options(self) -> dict[str, Any]:
        """The options of this instance, as plain values by the names of its fields."""
        return options_of(self)

    def first(self, grid: Grid) -> int:
        """Returns the index of the node whose state a ``LatentCode`` of this solver stores. 0 by default."""
        return 0

    def init(self, x: Tensor, grid: Grid) -> State:
        """Returns the state at ``grid[0]`` for a sample x alone, [N, ...]."""
        return {"x": x}

    @abstractmethod
    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Returns the state at ``grid[i + 1]`` from the one at ``grid[i]``."""

    def read(self, state: State) -> Tensor:
        """Returns the sample that a state holds, [N, ...]."""
        return state["x"]


@dataclass(frozen=True)
class InversionProblem:
    """The input of an inversion, besides the images and the grid.

    Attributes:
        network: the model, without guidance; None if there is only a denoiser, ``bare``.
        prompts: the two conditions of the images, N rows each.
        guidance: the guidance of sampling from the code.
        inversion_guidance: the guidance weight of the inversion, for methods that do not fix it.
        noise: the source of noise for methods that draw some, with one seed per sample.
        on_loss: called with the index of a step, from 0, and its loss while a method optimizes.
        resume: ``kept`` of an ``InversionInterrupted`` of the same images; None starts from the beginning.
        hold: limits x0 after guidance, during inversion and sampling.
        call: the other arguments of every network call.
        bare: a denoiser that includes its condition and guidance, which replaces the network.
        keep_trajectory: whether methods that step to noise store the sample at every node, ``extras["trajectory"]``.
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
    keep_trajectory: bool = False

    @staticmethod
    def of(denoise: Denoiser, noise: Noise | None = None) -> "InversionProblem":
        """Makes a problem from a denoiser, without conditions or guidance."""
        return InversionProblem(None, bare=denoise, noise=noise)

    def denoiser(self, weight: float | None = None) -> Denoiser:
        """Returns the denoiser of the model with its conditions, guidance and limit of x0.

        Args:
            weight: the guidance weight; None uses the one of ``guidance``. A bare denoiser ignores it.
        """
        if self.bare is not None:
            return with_hold(self.bare, self.hold)
        guidance = self.guidance if weight is None else self.guidance.at(weight)
        return guided(self.need_network(), guidance, self.prompts, hold=self.hold, call=self.call)

    def need_network(self) -> Network:
        """Returns the network. Raises InputError if there is only a bare denoiser."""
        if self.network is None:
            raise InputError(
                "this method uses prompts and guidance, and a bare denoiser has neither; give a model.",
                parameter="method",
            )
        return self.network

    def both_conditions(self, inversion: "Inversion") -> tuple[Conditioning, Conditioning]:
        """Returns the condition and the unconditional one, for an inversion that needs both.

        Raises:
            InputError: the conditions are not what the inversion needs; see ``Inversion.check_conditions``.
        """
        cond, uncond = self.prompts.cond, self.prompts.uncond
        inversion.check_conditions(text=TEXT in cond, uncond=uncond is not None)
        assert uncond is not None
        return cond, uncond


class InversionInterrupted(KeyboardInterrupt):
    """Ctrl-C during ``Inversion.invert``, with the intermediate results from which the method can continue.

    The result of a continued run is that of an uninterrupted one.

    Attributes:
        kept: the intermediate results, tensors [N, ...], for ``InversionProblem.resume``.
        steps: the number of steps of the grid that are done.
        x: the sample at the noisy end of the grid, [N, ...].
    """

    def __init__(self, kept: Mapping[str, Tensor], steps: int, x: Tensor) -> None:
        super().__init__()
        self.kept, self.steps, self.x = kept, steps, x


class InversionResult(NamedTuple):
    """The result of an inversion: everything that sampling needs to reconstruct the images.

    Attributes:
        state: the state of the solver at the noisy end of ``grid``.
        grid: the grid to sample on: the requested one, or its part with less noise.
        prompts: the two conditions to sample with.
        extras: see ``LatentCode.extras``.
        calls: see ``LatentCode.calls``; filled in by the pipelines.
    """

    state: State
    grid: Grid
    prompts: PromptConditioning
    extras: Mapping[str, Tensor]
    calls: Mapping[str, Tensor] = {}


class Inversion(ABC):
    """Abstract base class of all inversions, which take images to a state at the noisy end of a grid.

    Subclasses are frozen dataclasses whose fields are their options.

    Attributes:
        name: the key in the registry.
        paper: the source of the method.
        exact: whether the round trip is exact, by algebra or by stored tensors, and not an approximation.
        nfe: the largest number of network calls per step of the inversion; a call with guidance counts twice.
        order: the order of the round trip's error in the step size; for an exact method, that of its solver.
        floor_db: the PSNR in dB that a round trip with default options must reach in the tests: on data of a Gaussian
            and of a mixture of three, with a data range of 2 and 20 steps, conditioned, and guided with weight 3 in
            both directions if the method allows it. Infinity: the images must be equal to the bit; for a reversible
            solver, equal to the nearest point of its lattice.
        inversion_guidance: the guidance weight of the inversion, if the method fixes it; None if it is free.
        needs: ``"text"`` if the method needs embedded prompts, ``"conditions"`` if it needs conditions of any kind, and
            empty if a bare denoiser is enough.
        keeps: the names of the tensors that it stores in ``LatentCode.extras``, those of conditions as far as the
            network takes them.
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

    def __post_init__(self) -> None:
        """Raises InputError for an option of the wrong type. Subclasses check the ranges."""
        check_options(self)

    @property
    def options(self) -> dict[str, Any]:
        """The options of this instance, as plain values by the names of its fields."""
        return options_of(self)

    def amplification(self, grid: Grid) -> float:
        """Returns the factor by which the method itself enlarges a disturbance during inversion. 1 by default."""
        return 1.0

    def part(self, grid: Grid) -> Grid:
        """Returns the part of ``grid`` that sampling from the code uses. By default the whole grid."""
        return grid

    def whole(self) -> "Inversion":
        """Returns the same method without an option that leaves out a part of the grid."""
        return self

    @property
    def requires(self) -> str:
        """What this instance needs; ``needs``, unless an option needs more."""
        return self.needs

    @property
    def stores(self) -> tuple[str, ...]:
        """What this instance keeps in ``LatentCode.extras``; ``keeps``, unless an option keeps more."""
        return self.keeps

    def check_conditions(self, *, text: bool, uncond: bool, distilled: bool = False) -> None:
        """Checks whether a model has the conditions that the method works on.

        Args:
            text: whether its conditions are embedded prompts.
            uncond: whether it has a condition that classifier-free guidance leads away from.
            distilled: whether its guidance is distilled into the network, which takes the scale as an input.

        Raises:
            InputError: the method needs a prompt or an unconditional branch, and the model has none, or guidance that
                the method does not act on.
        """
        if not self.requires:
            return
        lacking = (
            "works on a prompt, and this model takes none"
            if self.requires == "text" and not text
            else "replaces the condition that guidance leads away from, and this model has none"
            if not uncond
            else "acts on the branch that classifier-free guidance leads away from, and this model's own guidance, an "
            "input of its network (the embedded scale), has no such branch"
            if distilled
            else ""
        )
        if lacking:
            raise InputError(f"{self.name!r} {lacking}; use 'ddim' or 'belm'.", parameter="method")

    def check_guidance(self, guidance: Guidance) -> None:  # noqa: B027  # most methods take any
        """Raises InputError if the method cannot prepare a code for sampling with this guidance; by default it can."""

    def sampling_guidance(self, guidance: Guidance) -> Guidance:
        """Returns the guidance of sampling from a code of the method, which the code stores.

        Args:
            guidance: the guidance that was asked for, which most methods leave as it is.
        """
        return guidance

    @abstractmethod
    def solver(self) -> Solver:
        """Returns the solver that reconstructs the images. A ``LatentCode`` stores its name and options."""

    def invert(
        self, problem: InversionProblem | Denoiser, x0: Tensor, grid: Grid, on_step: OnStep | None = None
    ) -> InversionResult:
        """Inverts images to a state at the noisy end of the grid.

        Args:
            problem: the model with its conditions, or a denoiser.
            x0: the images as the model sees them, [N, ...]: in its range, or encoded to latents.
            grid: the grid of S + 1 nodes.
            on_step: called after each step with the index of the node reached and the state there.

        Raises:
            InputError: the method needs prompts and there are none, or it cannot use this grid.
            NotFinite: the sample contains NaN or infinity after a step.
            InversionInterrupted: Ctrl-C, in a method that can continue from where it stopped.
        """
        whole = problem if isinstance(problem, InversionProblem) else InversionProblem.of(problem)
        return self.run(whole, x0, grid, on_step)

    @abstractmethod
    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Does the work of ``invert`` for an ``InversionProblem``; each subclass implements it."""
