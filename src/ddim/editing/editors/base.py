"""The base class of editors, which take targets from a source step by step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..._utils.errors import InputError
from ..._utils.registry import check_options
from ...core.conditioning import REFERENCE
from ...core.contracts import Inversion, Noise, OnStep, Solver, State, options_of
from ...core.denoiser import PLAIN, Call, Denoiser, Network
from ...core.grid import Grid
from ...core.guidance import Guidance
from ...core.path import Node
from ...core.prediction import NO_HOLD, Hold, Pair
from ...core.solve import solve
from ..blend import towards
from ..sides import Question, Side, ask
from ..strength import WHOLE, Reach

if TYPE_CHECKING:
    from ...models.info import ModelInfo


SOURCE, TARGET = "source", "x"
"""The entries of an editor's state: the source's sample [N, ...], and the targets' samples [N K, ...]."""


@dataclass(frozen=True)
class Usual:
    """The usual settings of an editor for a model.

    Attributes:
        guidance: the weight of classifier-free guidance under the target's prompt.
        source_guidance: that under the source's prompt.
        embedded, source_embedded: the same for the scale that a guidance-distilled network takes as an input.
        steps: the number of steps; None is the model's.
        strength: the strength in [0, 1].
    """

    guidance: float = 1.0
    source_guidance: float = 1.0
    embedded: float | None = None
    source_embedded: float | None = None
    steps: int | None = None
    strength: float = 1.0


class Concept(NamedTuple):
    """A part of a target prompt that the network is asked for, and its factor, which only some editors use."""

    text: str
    factor: float = 1.0


class StepNoise:
    """The noise of each draw of each step, numbered from the data end.

    So the steps at the data end have the same noise however many steps there are before them, and an edit changes
    continuously with its strength.

    Args:
        draw: the source of noise, with one seed per image, for [N, ...].
    """

    def __init__(self, draw: Noise) -> None:
        self._draw = draw
        self._drawn: list[Tensor] = []

    def __call__(self, like: Tensor, number: int) -> Tensor:
        """Returns the noise with a number, counted from 0, in the form of ``like``."""
        while len(self._drawn) <= number:
            self._drawn.append(self._draw(like))
        return self._drawn[number]


@dataclass(frozen=True, eq=False)
class EditProblem:
    """The input of an editor: N source images with K targets each.

    Attributes:
        network: the model.
        grid: the grid of S + 1 nodes.
        x0: the encoded images, [N, ...].
        source: conditions and guidance of the sources, N rows.
        target: those of the targets, N K rows; the targets of one image are neighbours.
        noise: the noise of the editor's draws; see ``StepNoise``.
        trajectory: the samples of the inversion at all nodes, [N, S + 1, ...]; None for editors without an inversion.
        extras: other tensors that the inversion stored; see ``LatentCode.extras``.
        noisy: the sample of the inversion at ``grid[0]``, [N, ...]; for editors without an inversion the encoded image.
        solver: the solver that reconstructs from the inversion; None for editors without an inversion.
        concepts: the parts of the targets' prompts, each as a side of N K rows and the factor of each row, [N K]; see
            ``Editor.concepts``. ``target`` is the first of them. Targets with fewer parts have the factor 0 in others.
        reach: the steps in which the targets may leave the source.
        mask: where they may, on the latent, [N, K or 1, H, W]; None is everywhere.
        hold: limits x0 after guidance.
        call: the other arguments of the network calls.
    """

    network: Network
    grid: Grid
    x0: Tensor
    source: Side
    target: Side
    noise: StepNoise
    trajectory: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    noisy: Tensor | None = None
    solver: Solver | None = None
    concepts: Sequence[tuple[Side, Tensor]] = ()
    reach: Reach = WHOLE
    mask: Tensor | None = None
    hold: Hold = NO_HOLD
    call: Call = PLAIN

    @property
    def many(self) -> int:
        """The number of targets K of each image."""
        return (self.target.prompts.cond.rows or len(self.x0)) // len(self.x0)

    def each(self, x: Tensor) -> Tensor:
        """Repeats the rows of the sources for their targets: [N, ...] to [N K, ...]."""
        return x if self.many == 1 else x.repeat_interleave(self.many, 0)

    def numbers(self, i: int, draws: int = 1) -> range:
        """Returns the numbers of the noises of step i, of which each step has ``draws``; see ``StepNoise``."""
        first = (self.grid.steps - 1 - i) * draws
        return range(first, first + draws)

    def at(self, i: int) -> Tensor:
        """Returns the source's sample at ``grid[i]`` on the trajectory of the inversion, [N, ...]."""
        assert self.trajectory is not None
        return self.trajectory[:, i]

    def ask(self, node: Node, *questions: Question) -> list[Pair]:
        """Asks the network; see ``ddim.editing.sides.ask``."""
        return ask(self.network, node, *questions, hold=self.hold, call=self.call)


def check_draws(draws_per_step: int) -> None:
    """Raises InputError if the number of noises per step, an option of some editors, is below 1."""
    if draws_per_step < 1:
        raise InputError(f"{draws_per_step} is too few; 1 is usual.", parameter="draws_per_step")


class Editor(ABC):
    """Abstract base class of editors. Subclasses are frozen dataclasses whose fields are their options.

    Attributes:
        name: the key in the registry.
        paper: the source of the method.
        nfe: the number of rows that a step asks the network for, per target, without guidance, with one draw of noise
            and one concept.
        self_edit: whether an edit to the source's own prompt at equal guidance returns the encoded image to the bit.
        needs: ``"text"`` or ``"conditions"`` if it uses what the source shows; if empty, its prompt may be left out.
        draws: whether it draws noise, so that the seed matters.
        steps: the number of steps, if the editor fixes it.
        from_source: whether the guidance of the targets leads away from the source's prompt, in place of the
            unconditional one, so that it also acts on models without classifier-free guidance.
        needs_trajectory: whether it starts from the samples of its inversion at all nodes.
        looks: whether it shows each image to the network as the reference picture of its own targets.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    nfe: ClassVar[int]
    self_edit: ClassVar[bool] = False
    needs: ClassVar[str] = "conditions"
    draws: ClassVar[bool] = False
    steps: ClassVar[int | None] = None
    from_source: ClassVar[bool] = False
    needs_trajectory: ClassVar[bool] = True
    looks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raises InputError for an option of the wrong type. Subclasses check the ranges."""
        check_options(self)

    @property
    def options(self) -> dict[str, Any]:
        """The options of this instance, as plain values by the names of its fields."""
        return options_of(self)

    def inversion(self) -> Inversion | None:
        """Returns the inversion whose codes it edits, or None if it edits the encoded image itself."""
        return None

    @abstractmethod
    def usual(self, info: "ModelInfo") -> Usual:
        """Returns its usual settings for a model."""

    def guidances(self, info: "ModelInfo", asked: float | Guidance | None) -> tuple[Guidance, Guidance]:
        """Returns the guidance of the sources and of the targets.

        The option ``source_guidance``, which some editors have, is a weight of classifier-free guidance, or for a model
        whose guidance is distilled into its network, the embedded scale.

        Args:
            info: facts about the model.
            asked: the guidance of the targets that was asked for; None is the usual one.
        """
        usual, own = self.usual(info), self.options.get("source_guidance")
        weight, embedded = usual.source_guidance, usual.source_embedded
        if own is not None:
            weight, embedded = (own, embedded) if usual.embedded is None else (weight, own)
        target = asked if isinstance(asked, Guidance) else Guidance(usual.guidance if asked is None else asked)
        if target.embedded is None:
            target = replace(target, embedded=usual.embedded)
        if self.from_source:  # both prompts are asked for at the same scale
            embedded = target.embedded
        return replace(target, weight=weight, embedded=embedded), target

    def usual_steps(self, info: "ModelInfo", asked: int | None) -> int:
        """Returns the number of steps if none was asked for.

        Raises:
            InputError: the editor fixes another number than ``asked``.
        """
        if self.steps is not None and asked not in (None, self.steps):
            raise InputError(f"{asked} is not what {self.name!r} makes: {self.steps}; leave it out.", parameter="steps")
        return self.steps or self.usual(info).steps or info.steps

    def check(self, info: "ModelInfo") -> None:
        """Raises InputError if it does not work on a model."""
        if self.needs == "text" and not info.text:
            raise InputError(
                f"{self.name!r} works on prompts, and the model {info.name!r} takes none; use 'direct'.",
                parameter="method",
            )
        if self.looks and REFERENCE not in info.optional_conditions:
            raise InputError(
                f"{self.name!r} shows the image to the network as a reference, and the model {info.name!r} looks at "
                "none; use 'flow-edit', or a model such as FLUX.1 Kontext or FLUX.2 klein.",
                parameter="method",
            )

    def concepts(self, prompt: str) -> tuple[Concept, ...]:
        """Splits a target prompt into the parts that the network is asked for; by default it is one part."""
        return (Concept(prompt),)

    def start(self, problem: EditProblem) -> State:
        """Returns the state at the node ``problem.reach.begin``, with the entries ``source`` and ``x``.

        By default both are the source on the trajectory, or the encoded image if there is none.
        """
        source = problem.x0 if problem.trajectory is None else problem.at(problem.reach.begin)
        return {SOURCE: source, TARGET: problem.each(source)}

    @abstractmethod
    def step(self, problem: EditProblem, state: State, i: int) -> State:
        """Returns the state at ``grid[i + 1]`` from the one at ``grid[i]``, without mask and strength."""

    def edit(self, problem: EditProblem, on_step: OnStep | None = None) -> Tensor:
        """Returns the edited latents, [N K, ...].

        Args:
            problem: the images, prompts and settings.
            on_step: called after each step with the index of the node reached and the state there.

        Raises:
            NotFinite: the sample contains NaN or infinity after a step.
        """
        end = solve(
            _no_denoiser,
            _Editing(self, problem),
            self.start(problem),
            problem.grid,
            first=problem.reach.begin,
            on_step=on_step,
        )
        return end[TARGET]


def _no_denoiser(x: Tensor, node: Node) -> Pair:
    """Stands in for the denoiser of a solver: editors ask the network themselves."""
    raise NotImplementedError


class _Editing(Solver):
    """Makes the steps of an editor, and sets the targets back to their source outside the mask."""

    name: ClassVar[str] = "editing"
    order: ClassVar[int] = 0
    nfe: ClassVar[int] = 0
    paper: ClassVar[str] = ""

    def __init__(self, editor: Editor, problem: EditProblem) -> None:
        self.editor, self.problem = editor, problem

    def step(self, denoise: Denoiser, state: State, grid: Grid, i: int, noise: Noise | None) -> State:
        """Makes a step of the editor, and applies mask and strength."""
        problem = self.problem
        after = self.editor.step(problem, state, i)
        mask, factor = problem.mask, problem.reach.factor(i)
        if mask is None and factor == 1:
            return after
        source, targets = after[SOURCE][:, None], after[TARGET].unflatten(0, (len(problem.x0), -1))
        whole = targets.new_ones(len(problem.x0), 1, *targets.shape[3:]) if mask is None else mask
        return {**after, TARGET: towards(source, targets, whole * factor).flatten(0, 1)}


def leading(x: Tensor, t: Node, y: Tensor, s: Node) -> Pair:
    """Returns the pair of a sample x at t from which a DDIM step ends at y, at s: the two equations solved for it.

    If y is an image without noise, it is the x0 of the pair to the bit.
    """
    if s.sigma == 0:
        x0 = y / s.alpha
        return Pair(x0, (x - t.alpha * x0) / t.sigma)
    det = t.alpha * s.sigma - s.alpha * t.sigma
    return Pair((s.sigma * x - t.sigma * y) / det, (t.alpha * y - s.alpha * x) / det)


def mixed(one: Pair, other: Pair, share: float | Tensor) -> Pair:
    """Returns one + share (other - one) for two pairs of the same sample; to the bit one at share 0, other at 1."""
    return Pair(torch.lerp(one.x0, other.x0, share), torch.lerp(one.eps, other.eps, share))


def proportional(info: "ModelInfo", guidance: float) -> float:
    """Returns a guidance weight that a paper uses for Stable Diffusion 3, in proportion to a model's usual weight.

    Args:
        info: facts about the model.
        guidance: the weight for Stable Diffusion 3, whose usual weight is 7.
    """
    return 1 + (info.guidance - 1) * (guidance - 1) / 6


def relative_size(change: Tensor) -> Tensor:
    """Returns the mean of |change| over the channels, scaled to [0, 1] within each sample, [M, 1, ...]."""
    size = change.abs().mean(1, keepdim=True)
    places = tuple(range(1, size.ndim))
    low, high = size.amin(places, keepdim=True), size.amax(places, keepdim=True)
    return (size - low) / (high - low).clamp(min=torch.finfo(size.dtype).tiny)


def in_proportion(info: "ModelInfo", guidance: float, embedded: float) -> tuple[float, float | None]:
    """Returns settings of Stable Diffusion 3 and FLUX in proportion to a model's usual guidance.

    Args:
        info: facts about the model.
        guidance: the weight that a paper uses for Stable Diffusion 3, whose usual weight is 7.
        embedded: the embedded scale that it uses for FLUX, whose usual scale is 3.5.

    Returns:
        the weight and the embedded scale for the model; the latter is None if it takes none.
    """
    if info.embedded is not None:
        return 1.0, embedded * info.embedded / 3.5
    return proportional(info, guidance), None
