"""What an inversion is: an image to a solver's state at the noisy end, and the solver that brings it back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.denoiser import Denoiser, bound, held
from ..core.grid import Grid
from ..core.guidance import NULL, WORDS, Guidance, classifier_free
from ..core.prediction import NO_HOLD, Hold
from ..core.solve import OnStep
from ..solvers.base import Noise, Solver, State
from .ddim import DDIMInversion


class Method(Protocol):
    """What every way from data to noise says of itself. Frozen; options are its fields."""

    @property
    def name(self) -> str:
        """As in the registry."""
        ...

    @property
    def exact(self) -> bool:
        """Whether algebra, or what is kept, brings the image back, and not approximation."""
        ...

    @property
    def paper(self) -> str:
        """Where it comes from."""
        ...

    @property
    def nfe(self) -> int:
        """Network calls a step on the way back, at most; a call under guidance counts twice."""
        ...

    @property
    def order(self) -> int:
        """Of the round trip's error in the step; for an exact one, of the solver that comes forward."""
        ...

    def amplification(self, grid: Grid) -> float:
        """How far the method itself may enlarge a disturbance on the way back; 1 is no more than the network does."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """What it was set to, for the record."""
        ...

    def solver(self) -> Solver:
        """The solver that comes forward again; a ``LatentCode`` keeps its name and options."""
        ...


@runtime_checkable
class Inversion(Method, Protocol):
    """A way that takes a denoiser as it is."""

    def invert(self, denoise: Denoiser, x0: Tensor, grid: Grid, on_step: OnStep | None = None) -> State:
        """The whole state at ``grid[0]`` from images x0, [N, ...]."""
        ...


@dataclass(frozen=True)
class InversionProblem:
    """What an inversion for guided models works on, beside the images.

    Attributes:
        denoise: the model, without guidance and without a condition in place.
        cond: ``words`` and ``null``, [N, L, D], and whatever else conditions the model.
        guidance: of the way forward.
        back: the weight of the way back, where a method leaves it free.
        prediction, t_max: see ``guidance.classifier_free``.
        noise: for methods that draw; seeded a sample.
        tell: called with a step, from 0, and its loss while a method tunes; may be left out.
        resume: what a ``InversionInterrupted`` of the same images kept; None begins anew.
        hold: of x0, after guidance, on the way back and forward.
    """

    denoise: Denoiser
    cond: Mapping[str, Any]
    guidance: Guidance
    back: float
    prediction: str = "eps"
    t_max: float = 1000.0
    noise: Noise | None = None
    tell: Callable[[int, float], None] | None = None
    resume: Mapping[str, Tensor] | None = None
    hold: Hold = NO_HOLD

    def guided(self, weight: float | None = None) -> Denoiser:
        """The model under guidance (of another weight, where one is given), x0 held, its condition in place."""
        guidance = self.guidance if weight is None else self.guidance.at(weight)
        guided = classifier_free(self.denoise, guidance, self.prediction, self.t_max)
        return bound(held(guided, self.hold), self.cond)


class InversionInterrupted(KeyboardInterrupt):
    """Ctrl-C inside ``walk``, with what the method needs to go on as if nothing had happened.

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
        grid: that the way forward walks: the one asked for, or its cleaner part.
        cond: for the way forward.
        extras: see ``LatentCode.extras``.
    """

    state: State
    grid: Grid
    cond: Mapping[str, Tensor]
    extras: Mapping[str, Tensor]


@runtime_checkable
class GuidedInversion(Method, Protocol):
    """A way that knows of guidance and prompts: ``walk`` in place of ``Inversion.invert``."""

    @property
    def back(self) -> float | None:
        """The weight of the way back, where the method has its own; None leaves it free."""
        ...

    def walk(self, scene: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None = None) -> InversionResult:
        """From images x0, [N, ...], to what brings them back under ``scene.guidance``."""
        ...


def pivot_of(
    scene: InversionProblem, x0: Tensor, grid: Grid, weight: float = 1.0, on_step: OnStep | None = None
) -> Tensor:
    """Every node of plain DDIM inversion under one weight: [N, S + 1, ...], entry i at ``grid[i]``; one call a step."""
    nodes = [x0]

    def keep(i: int, state: State) -> None:
        nodes.append(state["x"])
        if on_step is not None:
            on_step(i, state)

    DDIMInversion().invert(scene.guided(weight), x0, grid, keep)
    return torch.stack(nodes[::-1], dim=1)


def need_words(scene: InversionProblem, name: str) -> tuple[Tensor, Tensor]:
    """``words`` and ``null`` of the scene, [N, L, D].

    Raises:
        InputError: a model without text.
    """
    if WORDS not in scene.cond or NULL not in scene.cond:
        raise InputError(
            f"{name!r} works on a prompt, and this model takes none; use 'ddim' or 'belm'.", parameter="method"
        )
    return scene.cond[WORDS], scene.cond[NULL]
