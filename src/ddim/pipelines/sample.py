"""The pipeline ``sample``: images from noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole
from ..core.contracts import Solver
from ..core.denoiser import Denoiser, with_hold
from ..core.guidance import Guidance, check_classifier_weight, classifier_guided
from ..core.noise import checked_seed
from ..core.prediction import NO_HOLD
from ..core.solve import solve
from ..models.base import Model, class_labels
from ..models.classifier import NoisyClassifier
from ..solvers import make_solver
from .common import (
    Report,
    Spacing,
    check_run,
    grid_for,
    guidance_for,
    half_precision_hint,
    hold_for,
    need_model,
    prior,
    prompts_asked,
)
from .events import ImagesEvent, OnEvent, silent


def sample(
    model: Model,
    count: int = 16,
    *,
    steps: int = 50,
    eta: float = 0.0,
    seed: int = 0,
    solver: str | Solver = "ddim",
    spacing: Spacing | None = None,
    options: Mapping[str, Any] | None = None,
    labels: int | Sequence[int] | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str | None = None,
    guidance: float | Guidance | None = None,
    size: tuple[int, int] | None = None,
    classifier: NoisyClassifier | None = None,
    classifier_weight: float | None = None,
    clip_x0: float | None = None,
    threshold: float | None = None,
    batch: int = 64,
    on_event: OnEvent = silent,
) -> Tensor:
    """Draws images from noise.

    Args:
        model: from ``ddim.load``.
        count: how many.
        steps: S, 1 to ``model.schedule.path.levels``.
        eta: in [0, 1], for ``ddim``: 0 is deterministic, 1 is DDPM (Eq. 16 of Song et al. 2021).
        seed: the k-th image has the seed ``seed + k``, whatever the batch; one seed, one x_T, for every S and solver.
        solver: a key of ``ddim.SOLVERS``, or a solver such as ``ddim.BDIA(gamma=0.96)``; ``"ddpm"`` is the sigma-hat
            variance.
        spacing: a key of ``ddim.SPACINGS``, or a list of t; the model's own by default.
        options: of a solver that is named, such as ``{"gamma": 0.96}``.
        labels: class labels, one an image, or one (a number, or a list of one) for all: of a class-conditional model,
            and of ``classifier``.
        prompt: what a text-to-image model is to draw: one for all, or one an image. Words cannot be weighed here:
            ``(word:2)`` is refused, and ``\\(word:2)`` is text.
        negative: the prompt that guidance leads away from, as ``prompt``.
        guidance: w of classifier-free guidance, or a ``Guidance``; by default the model's usual one
            (``ModelInfo.guidance``: 7.5 for Stable Diffusion, 5 for SDXL), and 1 for one
            with classes, which leads away from its null class.
        size: (height, width) in pixels, where a model takes several; its own by default.
        classifier: from ``ddim.load_classifier``; leads a pixel model, be it unconditional, to ``labels``.
        classifier_weight: w of classifier guidance; 1, the default, is Bayes' rule.
        clip_x0: holds the predicted x0 to [-clip_x0, clip_x0] and derives eps anew; by default as the model's
            scheduler config says (``model.schedule.hold``), and infinity holds nothing, as in the paper.
        threshold: dynamic thresholding at this percentile instead.
        batch: images a network call.
        on_event: called with a ``StepEvent`` after each step, and with an ``ImagesEvent`` when a batch is done:
            progress, and keeping what there is.

    Returns:
        float tensor [count, C, H, W] in [0, 1].

    Raises:
        InputError: a value out of range or unknown, or one that could not act: eta > 0 with a solver that has no
            noise, guidance or words for a model without text, a classifier's weight without one.
        DDIMError: the network returned NaN; the step is named.
    """
    need_model(model)
    if not is_whole(count) or count < 1:
        raise InputError(f"{count} is not a number of images; use 1 or more.", parameter="count")
    check_run(batch, on_event)
    checked_seed(seed, count)
    made = solver_with_eta(solver, eta, options)
    shape = _shape_of(model, size)
    grid = grid_for(model, steps, spacing, (shape[1], shape[2]))
    hold, guided_as = hold_for(model, clip_x0, threshold), guidance_for(model, guidance, model.info.guidance)
    if negative and model.text and guided_as.weight == 1:
        raise InputError(f"{negative!r} has no say where the guidance is 1.", parameter="negative")
    if classifier is None and classifier_weight is not None:
        raise InputError(f"{classifier_weight} goes with a classifier; give one too.", parameter="classifier_weight")
    weight = 1.0 if classifier_weight is None else classifier_weight
    report = Report(on_event, grid.steps, count, batch)
    out: list[Tensor] = []
    wanted = None if classifier is None else _wanted(model, classifier, labels, count, weight)
    led_only = wanted is not None and not model.classes  # the labels are the classifier's alone
    prompt, negative = prompts_asked(model, prompt, negative, count)
    conditions = model.condition(None if led_only else labels, count, prompt, negative, size)
    for begin in range(0, count, batch):
        n = min(batch, count - begin)
        x, noise = prior(model, grid, [seed + k for k in range(begin, begin + n)], shape)
        led: Denoiser = model.guided(guided_as, conditions[begin : begin + n], hold=NO_HOLD)
        if classifier is not None and wanted is not None:
            led = classifier_guided(led, classifier, wanted[begin : begin + n], weight)
        denoise = with_hold(led, hold)  # once the classifier has led
        with half_precision_hint(model):
            state = solve(denoise, made, made.init(x, grid), grid, noise=noise, on_step=report)
        out.append(model.decode(made.read(state)))
        on_event(ImagesEvent(begin, out[-1]))
    return torch.cat(out)


def solver_with_eta(solver: str | Solver, eta: float, options: Mapping[str, Any] | None) -> Solver:
    """A solver by name or as it is; eta is shorthand for that of ``DDIM``.

    Raises:
        InputError: eta outside [0, 1], or above 0 with a solver that is deterministic or has its own noise.
    """
    if isinstance(eta, str) or not 0 <= eta <= 1:
        raise InputError(f"{eta} lies outside [0, 1]; 0 is DDIM, 1 is DDPM.", parameter="eta")
    if solver == "ddim":
        if options and "eta" in options and eta > 0:
            raise InputError(
                f"it is given twice, as {eta:g} and as the option {options['eta']}; give one.", parameter="eta"
            )
        return make_solver("ddim", {"eta": float(eta), **(options or {})})
    made = make_solver(solver, options)
    if eta > 0 and made.name == "ddim":
        raise InputError(f"{eta:g} stands beside a solver that has its own; give DDIM(eta={eta:g}).", parameter="eta")
    if eta > 0:
        why = "always draws sigma-hat noise" if made.stochastic else "is deterministic"
        raise InputError(
            f"{eta:g} goes with the solver 'ddim' only; {made.name!r} {why}, use eta = 0.", parameter="eta"
        )
    return made


def _wanted(
    model: Model,
    classifier: NoisyClassifier,
    labels: int | Sequence[int] | None,
    count: int,
    weight: float,
) -> Tensor:
    """The classes that a classifier leads to, int64 [count]. Raises InputError where it cannot."""
    check_classifier_weight(weight)
    if model.text or classifier.shape != model.shape:
        sides = "x".join(map(str, classifier.shape))
        raise InputError(
            f"{classifier.name!r} knows pictures of {sides}; the model {model.name!r} works on "
            f"{'codes' if model.text else 'pictures'} of {'x'.join(map(str, model.shape))}.",
            parameter="classifier",
        )
    if labels is None:
        raise InputError(
            f"a classifier leads to a class; give some, from 0 to {classifier.classes - 1}.", parameter="labels"
        )
    return class_labels(labels, count, classifier.classes, classifier.name).to(model.device)


def _shape_of(model: Model, size: tuple[int, int] | None) -> tuple[int, ...]:
    """(C, H, W) to draw, from a size in pixels."""
    if size is None or tuple(size) == model.picture[1:]:
        return model.shape
    m = model.multiple
    if not m:
        raise InputError(
            f"the model {model.name!r} draws {model.picture[2]}x{model.picture[1]} only.", parameter="size"
        )
    near = [max(m, round(side / m) * m) for side in size]
    if list(size) != near:
        raise InputError(
            f"{size[1]}x{size[0]}: the sides must be multiples of {m}, such as {near[1]}x{near[0]}.", parameter="size"
        )
    return (model.shape[0], *(side // m for side in near))
