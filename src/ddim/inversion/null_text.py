"""Null-text inversion: the null embedding is tuned until guided DDIM steps land on the pivot."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName
from ..core.conditioning import TEXT
from ..core.contracts import InversionInterrupted, InversionProblem, InversionResult, OnStep
from ..core.grid import Grid
from .base import ByDDIM, pivot_of
from .replay import TUNED
from .tuning import Adam, Landing

STARTS = ("empty", "prompt")
SCOPES = ("step", "global")


@dataclass(frozen=True)
class NullText(ByDDIM):
    """Mokady et al. 2023 (arXiv 2211.09794), Algorithm 1, over a batch of images.

    The pivot is plain DDIM inversion at weight 1. Forwards, at step i and from where the sample is by then, the null
    embedding is moved until the guided step lands on the pivot's next node; the mean squared distance is the loss.
    Each step starts from the embedding of the step before. The last embedding is kept, as in the paper, also where an
    earlier one landed nearer. Images are tuned together and each stops by itself: one that is near enough is neither
    asked for nor changed again.

    ``scope="global"`` looks for one embedding for all steps: the least sum over t of the distances to the pivot, each
    step taken from the pivot's own node. ``inner`` sweeps over the grid with an update of Adam's at each node, anew
    each sweep, the rate falling evenly from ``lr``; a sweep whose losses come to ``stop`` on average or less ends
    it, and the embedding at the end of the last sweep is kept.

    Args:
        inner: updates a step, at most (of ``global``: sweeps); at least 1.
        lr: Adam's learning rate at the first step; it falls by 1 % of itself a step, or, with more than 100 steps,
            evenly towards 0. The authors' falls below 0 there.
        stop, rise: at step i a loss below stop + i * rise is near enough (i counted in hundredths of the grid with more
            than 100 steps).
        start: where the first embedding comes from: ``"empty"`` is the negative prompt, as in the paper; ``"prompt"``
            the source's own, under which guided steps hardly miss: fewer network calls (see
            ``benchmarks/null_text.py``), but an edit is then guided away from the source's prompt.
        scope: ``"step"`` or ``"global"``.
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
    keeps: ClassVar[tuple[str, ...]] = (TUNED,)

    def __post_init__(self) -> None:
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
        """The pivot, the prompt's prediction, and one for each update and the last embedding."""
        return self.inner + 3

    def rate(self, i: int, steps: int) -> float:
        """The learning rate of step i."""
        return self.lr * (1 - self._counted(i, steps) / 100)

    def enough(self, i: int, steps: int) -> float:
        """The loss below which step i is near enough."""
        return self.stop + self.rise * self._counted(i, steps)

    @staticmethod
    def _counted(i: int, steps: int) -> float:
        return i * min(1.0, 100 / steps)

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """The pivot's noisy end with ``extras["uncond_text"]`` [N, S, L, D]; of scope ``global``, another ``uncond``.

        ``on_step`` and ``problem.on_loss`` are called a step (of ``global``: a sweep), the latter with the loss that is
        left, the images' mean.

        Raises:
            InputError: a model without text, or weight 1.
            InversionInterrupted: Ctrl-C, once the pivot is there.
            DDIMError: the network returned NaN; the step is named.
        """
        prompts = problem.need_text(self.name)
        if problem.guidance.weight == 1:
            raise InputError(
                f"1 leaves {self.name!r} nothing to tune, since the null embedding has no say; "
                "use another weight, such as 7.5, or the method 'ddim'.",
                parameter="guidance",
            )
        assert prompts.uncond is not None
        words, empty = prompts.cond.tensors[TEXT], prompts.uncond.tensors[TEXT]
        first = (words if self.start == "prompt" else empty).clone()
        kept = problem.resume or {"pivot": pivot_of(problem, x0, grid)}
        one = self._tune_all if self.scope == "global" else self._tune_each
        return one(problem, grid, first, kept, on_step)

    def _tune_each(
        self, problem: InversionProblem, grid: Grid, first: Tensor, kept: Mapping[str, Tensor], on_step: OnStep | None
    ) -> InversionResult:
        pivot = kept["pivot"]
        # Replaced whole after each step, so that Ctrl-C finds it whole.
        done = kept.get("x", pivot[:, 0]), kept[TUNED].unbind(1) if TUNED in kept else ()
        try:
            for i in range(len(done[1]), grid.steps):
                x, nulls = done
                landing = Landing(problem, x, grid[i], grid[i + 1], pivot[:, i + 1])
                null, x, loss = self._tune(landing, nulls[-1] if nulls else first, i, grid.steps)
                done = x, (*nulls, null)
                if problem.on_loss is not None:
                    problem.on_loss(i, float(loss.mean()))
                if on_step is not None:
                    on_step(i + 1, {"x": x})
        except KeyboardInterrupt:
            x, nulls = done
            tuned = {TUNED: torch.stack(nulls, dim=1)} if nulls else {}
            raise InversionInterrupted({"pivot": pivot, "x": x, **tuned}, len(nulls), pivot[:, 0]) from None
        return InversionResult({"x": pivot[:, 0]}, grid, problem.prompts, {TUNED: torch.stack(done[1], dim=1)})

    def _tune(self, landing: Landing, null: Tensor, i: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """The last embedding, where its step lands, and its loss [N]: no call is made only to advance."""
        x, loss = landing.unasked(null)
        enough, null = self.enough(i, steps), null.clone()
        rows = torch.nonzero(~(loss <= enough)).flatten() if landing.tunable else loss.new_empty(0, dtype=torch.long)
        adam = Adam(null, self.rate(i, steps))
        for k in range(self.inner + 1):
            if len(rows) == 0:
                break
            x[rows], loss[rows], gradient = landing(null[rows], rows, need_gradient=k < self.inner)
            far = ~(loss[rows] <= enough)
            rows = rows[far]
            if gradient is not None and len(rows):
                null[rows] = adam(null[rows], gradient[far], rows)
        landing.check(loss, i, steps)
        return null, x, loss

    def _tune_all(
        self, problem: InversionProblem, grid: Grid, first: Tensor, kept: Mapping[str, Tensor], on_step: OnStep | None
    ) -> InversionResult:
        pivot, steps = kept["pivot"], grid.steps
        enough = self.stop * steps  # without the rise: nothing here makes up for what an earlier step missed
        state = {key: v for key, v in kept.items() if key != "pivot"} or {
            TUNED: first,
            "loss": pivot.new_full((len(first),), torch.inf),  # of the last sweep
            "near": torch.zeros(len(first), dtype=torch.bool, device=first.device),
            "sweep": torch.zeros(len(first), dtype=torch.long),  # the same for all
        }
        try:
            landings = [Landing(problem, pivot[:, i], grid[i], grid[i + 1], pivot[:, i + 1]) for i in range(steps)]
            while (q := int(state["sweep"][0])) < self.inner and not bool(state["near"].all()):
                state = self._sweep(landings, state, enough, q)
                if problem.on_loss is not None:
                    problem.on_loss(q, float(state["loss"].mean()))
                last = q + 1 == self.inner or bool(state["near"].all())
                for i in range(q * steps // self.inner, steps if last else (q + 1) * steps // self.inner):
                    if on_step is not None:
                        on_step(i + 1, {"x": pivot[:, i + 1]})
        except KeyboardInterrupt:
            share = int(state["sweep"][0]) * steps // self.inner
            raise InversionInterrupted({"pivot": pivot, **state}, share, pivot[:, 0]) from None
        assert problem.prompts.uncond is not None
        tuned = replace(problem.prompts, uncond=problem.prompts.uncond.replace(text=state[TUNED]))
        return InversionResult({"x": pivot[:, 0]}, grid, tuned, {})

    def _sweep(self, landings: list[Landing], state: dict[str, Tensor], enough: float, q: int) -> dict[str, Tensor]:
        """One update at each node in turn, of the images that are not near enough yet."""
        steps, rows = len(landings), torch.nonzero(~state["near"]).flatten()
        null, total = state[TUNED].clone(), torch.zeros_like(state["loss"])
        adam = Adam(null, self.lr * (1 - q / self.inner))
        for i, landing in enumerate(landings):
            if landing.tunable:
                _, loss, gradient = landing(null[rows], rows, need_gradient=True)
                assert gradient is not None
                null[rows] = adam(null[rows], gradient, rows)
            else:
                loss = landing.unasked(null)[1][rows]
            landing.check(loss, i, steps)
            total[rows] += loss
        return {
            TUNED: null,
            "loss": torch.where(state["near"], state["loss"], total),
            "near": state["near"] | (total <= enough),
            "sweep": state["sweep"] + 1,
        }
