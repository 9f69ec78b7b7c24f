"""Null-text inversion: optimizes the unconditional embedding until guided DDIM steps follow the pivot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName
from ..core.conditioning import TEXT, TEXT_MASK, Conditioning, PromptConditioning
from ..core.contracts import InversionInterrupted, InversionProblem, InversionResult, OnStep
from ..core.grid import Grid
from ..core.guidance import Guidance
from ..core.late import LateFlag, LateValues, late_checks
from .base import ByDDIM, pivot_of
from .extras import TUNED, TUNED_POOLED
from .replay import TUNED_PARTS
from .tuning import Adam, GuidedStep, null_of, only, parts_of, rows_to_compute

_NULL = TUNED
"""The name of the one null embedding of all steps in the progress of an interrupted run."""

STARTS = ("empty", "prompt")
SCOPES = ("step", "global")


@dataclass(frozen=True)
class NullText(ByDDIM):
    """Null-text inversion (Mokady et al. 2023, arXiv 2211.09794, Algorithm 1), for a batch of images.

    The pivot is the trajectory of plain DDIM inversion at guidance weight 1. Then sampling starts from its noisy end.
    In each step the unconditional ("null") embedding is optimized, so that the guided step from the current sample ends
    at the next node of the pivot. The loss is the mean squared distance. Each step starts from the embedding of the
    previous step. As in the paper, the last embedding of a step is stored, even if an earlier one had a smaller loss.
    Of a network that also takes a pooled embedding of the prompt (SDXL, SD 3), both embeddings are optimized.
    The images of a batch are optimized together, but each stops by itself: an image whose loss is small enough is not
    changed again in that step. On a CPU it is not evaluated again either. On a GPU it stays in the batch, whose shape
    is fixed in a CUDA graph, and the step ends one update after all images have stopped, when the host learns of it.

    With ``scope="global"``, one embedding serves all steps. It minimizes the sum of the losses of all steps, where each
    step starts from the pivot itself. The optimization makes at most ``inner`` sweeps over the grid, with one update at
    each node. Every sweep starts a new Adam, and the learning rate decreases linearly from ``lr``. An image stops after
    a sweep whose mean loss is at most ``stop``; its embedding at the end of that sweep is stored.

    Args:
        inner: the largest number of updates per step, or of sweeps if ``scope`` is ``"global"``; at least 1.
        lr: Adam's learning rate in the first step. In step i it is lr (1 - i / 100), as in the authors' work; with
            more than 100 steps, where that would become negative, it decreases linearly towards 0.
        stop, rise: an image stops in step i if its loss is at most stop + i * rise. With more than 100 steps, i is
            counted in hundredths of the grid.
        start: the first embedding. ``"empty"`` is that of the negative prompt, as in the paper. ``"prompt"`` is that of
            the source prompt, with which guided steps nearly follow the pivot: it needs fewer network calls (see
            ``benchmarks/null_text.py``), but an edit is then guided away from the source prompt.
        scope: ``"step"`` for one embedding per step, ``"global"`` for one embedding for all steps.

    Raises:
        InputError: an option is out of range or unknown.
    """

    inner: int = 10
    lr: float = 1e-2
    stop: float = 1e-5
    rise: float = 2e-5
    start: str = "empty"
    scope: str = "step"

    name: ClassVar[str] = "null-text"
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 24.0
    paper: ClassVar[str] = "Mokady et al. 2023, arXiv 2211.09794"
    order: ClassVar[int] = 1
    inversion_guidance: ClassVar[float | None] = 1.0
    needs: ClassVar[str] = "text"
    keeps: ClassVar[tuple[str, ...]] = (TUNED, TUNED_POOLED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner < 1:
            raise InputError(f"{self.inner} tunes nothing; use 1 or more, 10 is the paper's.", parameter="inner")
        if not 0 < self.lr < float("inf"):
            raise InputError(
                f"{self.lr:g} is no learning rate; use a number above 0, 0.01 is the paper's.", parameter="lr"
            )
        for key in ("stop", "rise"):
            if not getattr(self, key) >= 0:
                raise InputError(f"{getattr(self, key):g} is no distance; use 0 or more.", parameter=key)
        if self.start not in STARTS:
            raise UnknownName("start", self.start, STARTS)
        if self.scope not in SCOPES:
            raise UnknownName("scope", self.scope, SCOPES)

    @property
    def nfe(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The largest number of network calls per step: ``inner`` + 3.

        One call makes the pivot, one evaluates the conditional branch, and the others evaluate the unconditional branch
        for each update and for the last embedding.
        """
        return self.inner + 3

    def rate(self, i: int, steps: int) -> float:
        """Returns the learning rate of step i of ``steps``."""
        return self.lr * (1 - self._counted(i, steps) / 100)

    def enough(self, i: int, steps: int) -> float:
        """Returns the loss at or below which an image stops in step i of ``steps``."""
        return self.stop + self.rise * self._counted(i, steps)

    @staticmethod
    def _counted(i: int, steps: int) -> float:
        """Returns i, or with more than 100 steps its hundredth of the grid, so that the result stays below 100."""
        return i * min(1.0, 100 / steps)

    def check_guidance(self, guidance: Guidance) -> None:
        """Raises InputError for the guidance weight 1, at which the unconditional embedding has no effect."""
        if guidance.weight == 1:
            raise InputError(
                f"1 leaves {self.name!r} nothing to tune, since the null embedding then has no effect; "
                "use another weight, such as 7.5, or the method 'ddim'.",
                parameter="guidance",
            )

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Returns the noisy end of the pivot with ``extras["uncond_text"]`` [N, S, L, D].

        If the network takes a pooled embedding, ``extras["uncond_pooled"]`` is [N, S, P].

        With scope ``"global"`` it returns the embedding as a part of the unconditional condition instead. After each
        step, or each sweep, ``problem.on_loss`` is called with the mean of the images' losses. ``on_step`` is called
        once for every step of the grid in total; with scope ``"global"`` a sweep reports its share of them.

        Raises:
            InputError: the model takes no prompts, or the guidance weight is 1.
            InversionInterrupted: Ctrl-C after the pivot is complete.
            NotFinite: the sample contains NaN or infinity after a step.
        """
        cond, uncond = problem.both_conditions(self)
        self.check_guidance(problem.guidance)
        begin = cond if self.start == "prompt" else uncond
        if TEXT_MASK in begin:  # the tuned embedding has as many tokens as the one that it starts from
            uncond = uncond.replace(text_mask=begin.tensors[TEXT_MASK])
            problem = replace(problem, prompts=PromptConditioning(cond, uncond))
        kept = problem.resume or {"pivot": pivot_of(problem, x0, grid)}
        tune = self._tune_all if self.scope == "global" else self._tune_each
        with late_checks():
            return tune(problem, grid, null_of(begin).clone(), kept, on_step)

    def _tune_each(
        self, problem: InversionProblem, grid: Grid, first: Tensor, kept: Mapping[str, Tensor], on_step: OnStep | None
    ) -> InversionResult:
        """Optimizes one embedding for each step, starting after those in ``kept``."""
        pivot = kept["pivot"]
        # One tuple, which is replaced by one assignment after each step: Ctrl-C can come between any two operations,
        # and must find a sample that belongs to the embeddings.
        done = kept.get("x", pivot[:, 0]), _from_extras(kept)
        losses = LateValues[int]()
        try:
            for i in range(len(done[1]), grid.steps):
                x, nulls = done
                step = GuidedStep(problem, x, grid[i], grid[i + 1], pivot[:, i + 1])
                null, x, loss = self._tune(step, nulls[-1] if nulls else first, i, grid.steps)
                done = x, (*nulls, null)
                for at, (mean,) in losses.add(i, loss.mean().view(1), wait=i + 1 == grid.steps):
                    if problem.on_loss is not None:
                        problem.on_loss(at, mean)
                if on_step is not None:
                    on_step(i + 1, {"x": x})
        except KeyboardInterrupt:
            x, nulls = done
            tuned = _to_extras(nulls, problem) if nulls else {}
            raise InversionInterrupted({"pivot": pivot, "x": x, **tuned}, len(nulls), pivot[:, 0]) from None
        return InversionResult({"x": pivot[:, 0]}, grid, problem.prompts, _to_extras(done[1], problem))

    def _tune(self, step: GuidedStep, null: Tensor, i: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Optimizes the embedding of step i; returns the last one, the end of its step, and its loss [N].

        The loss of an embedding and the end of its step come from the same network call, so that none is made only to
        advance the sample.
        """
        x, loss = step.without_call(null)
        enough, null = self.enough(i, steps), null.clone()
        # ``~(loss <= enough)`` and not ``loss > enough``: a NaN must count as not finished, so that ``check`` finds it.
        unfinished, adam, more = ~(loss <= enough), Adam(null, self.rate(i, steps)), LateFlag()
        # One round more than updates: the last round evaluates the embedding after the last update.
        for k in range(self.inner + 1 if step.tunable else 0):
            if not more(unfinished.any()):
                break
            rows = rows_to_compute(unfinished)
            end, losses, gradient = step(null[rows], rows, need_gradient=k < self.inner)
            x[rows] = only(unfinished[rows], end, x[rows])
            loss[rows] = only(unfinished[rows], losses, loss[rows])
            unfinished = unfinished & ~(loss <= enough)
            if gradient is not None:
                null[rows] = only(unfinished[rows], adam(null[rows], gradient, rows), null[rows])
        step.check(loss, i, steps)
        return null, x, loss

    def _tune_all(
        self, problem: InversionProblem, grid: Grid, first: Tensor, kept: Mapping[str, Tensor], on_step: OnStep | None
    ) -> InversionResult:
        """Optimizes one embedding for all steps, starting from the sweep at which ``kept`` was left."""
        pivot, steps = kept["pivot"], grid.steps
        # Without ``rise``, which allows for the errors of earlier steps: here every step starts from the pivot.
        enough = self.stop * steps
        state = {key: v for key, v in kept.items() if key != "pivot"} or {
            _NULL: first,
            "loss": pivot.new_full((len(first),), torch.inf),  # the sum over the steps, in the last sweep of the image
            "near": torch.zeros(len(first), dtype=torch.bool, device=first.device),  # whether the image has stopped
            "sweep": torch.zeros(len(first), dtype=torch.long),  # the number of sweeps, equal for all images
        }
        try:
            guided = [GuidedStep(problem, pivot[:, i], grid[i], grid[i + 1], pivot[:, i + 1]) for i in range(steps)]
            while (q := int(state["sweep"][0])) < self.inner and not bool(state["near"].all()):
                state = self._sweep(guided, state, enough, q)
                if problem.on_loss is not None:
                    problem.on_loss(q, float(state["loss"].mean()))
                # Each sweep reports its share of the steps, and the last one all that are left.
                last = q + 1 == self.inner or bool(state["near"].all())
                for i in range(q * steps // self.inner, steps if last else (q + 1) * steps // self.inner):
                    if on_step is not None:
                        on_step(i + 1, {"x": pivot[:, i + 1]})
        except KeyboardInterrupt:
            share = int(state["sweep"][0]) * steps // self.inner
            raise InversionInterrupted({"pivot": pivot, **state}, share, pivot[:, 0]) from None
        assert problem.prompts.uncond is not None
        uncond = problem.prompts.uncond
        tuned = replace(problem.prompts, uncond=uncond.replace(**parts_of(state[_NULL], uncond)))
        return InversionResult({"x": pivot[:, 0]}, grid, tuned, {})

    def _sweep(self, guided: list[GuidedStep], state: dict[str, Tensor], enough: float, q: int) -> dict[str, Tensor]:
        """Makes sweep q: one update at each node in turn, for the images that have not stopped. Returns a new state."""
        steps, unfinished = len(guided), ~state["near"]
        rows = rows_to_compute(unfinished)
        null, total = state[_NULL].clone(), torch.zeros_like(state["loss"])
        adam = Adam(null, self.lr * (1 - q / self.inner))
        for i, step in enumerate(guided):
            if step.tunable:
                _, loss, gradient = step(null[rows], rows, need_gradient=True)
                assert gradient is not None
                null[rows] = only(unfinished[rows], adam(null[rows], gradient, rows), null[rows])
            else:
                loss = step.without_call(null)[1][rows]
            step.check(loss, i, steps)
            total[rows] += loss
        return {
            _NULL: null,
            "loss": torch.where(state["near"], state["loss"], total),
            "near": state["near"] | (total <= enough),
            "sweep": state["sweep"] + 1,
        }


def _to_extras(nulls: Sequence[Tensor], problem: InversionProblem) -> dict[str, Tensor]:
    """Returns the null embeddings of the steps as a code stores them, [N, S, ...] by name."""
    uncond = problem.prompts.uncond
    assert uncond is not None
    parts = [parts_of(null, uncond) for null in nulls]
    return {TUNED_PARTS[name]: torch.stack([part[name] for part in parts], dim=1) for name in parts[0]}


def _from_extras(kept: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Returns the null embeddings of the steps that were done, from what ``_to_extras`` returned."""
    tensors = {name: kept[key] for name, key in TUNED_PARTS.items() if key in kept}
    steps = tensors[TEXT].shape[1] if tensors else 0
    return tuple(null_of(Conditioning({name: each[:, i] for name, each in tensors.items()})) for i in range(steps))
