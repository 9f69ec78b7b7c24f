"""SPDInv: finds the noisy end of each DDIM step by gradient descent, as a fixed point of the step's inverse."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, NotFinite
from ..core.conditioning import PromptConditioning
from ..core.contracts import InversionInterrupted, InversionProblem, InversionResult, OnStep
from ..core.denoiser import Denoiser
from ..core.gradients import quick_gradients
from ..core.grid import Grid
from ..core.late import LateFlag, LateValues, late_checks, require
from ..solvers.base import path_ode
from .base import ByDDIM
from .tuning import Adam, keeping_weights, only, rows_to_compute


@dataclass(frozen=True)
class SPDInversion(ByDDIM):
    """Source prompt disentangled inversion (Li et al. 2024, arXiv 2403.11105, Algorithm 1), for a batch of images.

    The inverse of the DDIM step that ends at x_s is f(x_t), with the prediction at x_t. The true x_t is a fixed point,
    f(x_t) = x_t. Each step starts from plain DDIM inversion, f(x_s), and then minimizes the mean square of f(x) - x by
    gradient descent on x, through the network. The last x of a step is used, even if an earlier one had a smaller loss.
    The fixed-point iteration of ``ddim`` solves the same equation without gradients.

    The inversion has the guidance weight 1. With ``source_uncond`` the code is then sampled with the source prompt as
    the unconditional embedding, as by ``negative-prompt``, so that the guidance weight has no effect on the source.

    The images of a batch are searched together, but each stops by itself: an image whose loss is small enough is not
    changed again in that step. On a CPU it is not evaluated again either. On a GPU it stays in the batch, whose shape
    is fixed in a CUDA graph. The optimizer is Adam; the AdamW of the authors also shrinks x by 1e-5 in each update,
    which is left out here.

    Args:
        inner: the largest number of updates per step; at least 1.
        lr: Adam's learning rate.
        stop: an image stops in a step if its loss is at most this.
        source_uncond: whether the code is sampled with the source prompt as the unconditional embedding. A model
            without an unconditional condition needs false.

    Raises:
        InputError: an option is out of range.
    """

    inner: int = 25
    lr: float = 1e-3
    stop: float = 5e-6
    source_uncond: bool = True

    name: ClassVar[str] = "spd"
    exact: ClassVar[bool] = False
    floor_db: ClassVar[float] = 34.0
    paper: ClassVar[str] = "Li et al. 2024, arXiv 2403.11105"
    needs: ClassVar[str] = "conditions"
    order: ClassVar[int] = 1
    inversion_guidance: ClassVar[float | None] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner < 1:
            raise InputError(
                f"{self.inner} searches nothing; use 1 or more, 25 is the paper's, or the method 'ddim'.",
                parameter="inner",
            )
        if not 0 < self.lr < float("inf"):
            raise InputError(
                f"{self.lr:g} is no learning rate; use a number above 0, 0.001 is the paper's.", parameter="lr"
            )
        if not self.stop >= 0:
            raise InputError(f"{self.stop:g} is no distance; use 0 or more.", parameter="stop")

    @property
    def nfe(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The largest number of network calls per step, ``inner`` + 1; all but the first also need their gradient."""
        return self.inner + 1

    @property
    def requires(self) -> str:
        """``"conditions"``, or nothing if ``source_uncond`` is false."""
        return self.needs if self.source_uncond else ""

    def check_conditions(self, *, text: bool, uncond: bool, distilled: bool = False) -> None:
        """Raises InputError if ``source_uncond`` is true and the model has no branch that it could replace."""
        try:
            super().check_conditions(text=text, uncond=uncond, distilled=distilled)
        except InputError as lacking:
            raise InputError(
                lacking.message, parameter=lacking.parameter, hint="Or set the option source_uncond = false."
            ) from None

    def run(self, problem: InversionProblem, x0: Tensor, grid: Grid, on_step: OnStep | None) -> InversionResult:
        """Returns x at the noisy end, and the conditions, with the new unconditional branch if it is asked for.

        After each step, ``problem.on_loss`` is called with the mean of the images' last losses.

        Raises:
            InputError: the model has no unconditional condition, and ``source_uncond`` is true.
            InversionInterrupted: Ctrl-C after the first step.
            NotFinite: the sample contains NaN or infinity after a step.
        """
        prompts = problem.prompts
        if self.source_uncond:
            cond, _ = problem.both_conditions(self)
            prompts = PromptConditioning(cond, cond)
        kept = problem.resume
        # One tuple, which is replaced by one assignment after each step: Ctrl-C can come between any two operations.
        losses = LateValues[int]()
        at = (kept["pivot"][:, 0], int(kept["done"][0])) if kept else (x0, 0)
        try:
            with late_checks():
                for done in range(at[1], grid.steps):
                    i = grid.steps - 1 - done
                    x, loss = self._search(problem, at[0], grid, i)
                    at = x, done + 1
                    for step, (mean,) in losses.add(done, loss.mean().view(1), wait=done + 1 == grid.steps):
                        if problem.on_loss is not None:
                            problem.on_loss(step, mean)
                    if on_step is not None:
                        on_step(i, {"x": x})
        except KeyboardInterrupt:
            x, done = at
            if not done:
                raise
            left = {"pivot": torch.stack([x, x0], 1), "done": torch.full((len(x),), done)}
            raise InversionInterrupted(left, done, x) from None
        return InversionResult({"x": at[0]}, grid, prompts, {})

    def _search(self, problem: InversionProblem, x: Tensor, grid: Grid, i: int) -> tuple[Tensor, Tensor]:
        """Returns the sample at ``grid[i]`` for x at ``grid[i + 1]``, and the last loss of each image, [N]."""
        ode, t, s = path_ode(grid), grid[i], grid[i + 1]
        every = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            guess = ode.along(x, _denoiser(problem, every)(x, t), s, t)
        loss, unfinished = torch.full_like(guess.flatten(1)[:, 0], torch.inf), torch.ones_like(every, dtype=torch.bool)
        adam, more = Adam(guess, self.lr), LateFlag()
        for _ in range(self.inner):
            if not more(unfinished.any()):
                break
            rows = rows_to_compute(unfinished)
            found, slope = self._loss(problem, guess[rows], x[rows], rows, grid, i)
            loss[rows] = only(unfinished[rows], found, loss[rows])
            # ``~(loss <= stop)`` and not ``loss > stop``: a NaN must count as not finished.
            unfinished = unfinished & ~(loss <= self.stop)
            guess[rows] = only(unfinished[rows], adam(guess[rows], slope, rows), guess[rows])

        def error() -> NotFinite:
            return NotFinite(
                f"The sample is no longer finite after the step from t = {s.t:g} to t = {t.t:g} "
                f"(step {grid.steps - i} of {grid.steps}): the network returned NaN or infinity.",
                step=grid.steps - i,
            )

        require(torch.isfinite(guess).all() & torch.isfinite(loss).all(), error)
        return guess, loss

    def _loss(
        self, problem: InversionProblem, guess: Tensor, x: Tensor, rows: Tensor, grid: Grid, i: int
    ) -> tuple[Tensor, Tensor]:
        """Returns the mean square of f(guess) - guess of some rows, [n], and its gradient with respect to the guess."""
        t, s = grid[i], grid[i + 1]
        quantised = bool(getattr(problem.network, "quantised", ()))
        weights = keeping_weights() if quantised else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), quick_gradients(x.device), weights:
            leaf = guess.detach().clone().requires_grad_()
            pair = _denoiser(problem, rows)(leaf, t)
            loss = (path_ode(grid).along(x, pair, s, t) - leaf).square().flatten(1).mean(1)
            # The gradient of the sum of squares, divided afterwards: that of the mean could underflow in float16.
            size = leaf[0].numel()
            (slope,) = torch.autograd.grad(loss.sum() * size, leaf)
        return loss.detach(), slope / size


def _denoiser(problem: InversionProblem, rows: Tensor) -> Denoiser:
    """Returns the conditional denoiser of some rows."""
    if problem.bare is not None:
        return problem.denoiser(1.0)
    return replace(problem, prompts=problem.prompts[rows]).denoiser(1.0)
