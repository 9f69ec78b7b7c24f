"""What a user calls: sample, invert, reconstruct (in ``between``: interpolate; in ``editing``: edit)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError, Interrupted, is_whole
from ..core.denoiser import bound, held
from ..core.guidance import Guidance, check_classifier_weight, classifier_guided
from ..core.noise import checked_seed
from ..core.prediction import NO_HOLD
from ..core.solve import solve
from ..data.images import ImageLike, read_images
from ..inversion import inversion_names, make_inversion
from ..inversion import partial as partials
from ..inversion.base import GuidedInversion, Inversion
from ..inversion.latent_code import LatentCode
from ..inversion.replay import replay, resumed
from ..models.base import Model, class_labels
from ..models.classifier import NoisyClassifier
from ..solvers import Solver, make_solver
from ..solvers.lattice import steps_of_code
from .common import (
    OnCodes,
    OnImages,
    Progress,
    Report,
    Spacing,
    Tell,
    asked_of,
    check_batch,
    grid_for,
    guidance_for,
    guided_by,
    half_precision_hint,
    hold_for,
    hold_of,
    need_code,
    need_model,
    part_of,
    start,
    walk_back,
    way_forward,
)


def sample(
    model: Model,
    count: int = 16,
    *,
    steps: int = 50,
    eta: float = 0.0,
    seed: int = 0,
    solver: str = "ddim",
    spacing: Spacing | None = None,
    options: Mapping[str, Any] | None = None,
    labels: int | Sequence[int] | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str = "",
    guidance: float | Guidance | None = None,
    size: tuple[int, int] | None = None,
    classifier: NoisyClassifier | None = None,
    classifier_weight: float | None = None,
    clip_x0: float | None = None,
    threshold: float | None = None,
    batch: int = 64,
    progress: Progress | None = None,
    on_batch: OnImages | None = None,
) -> Tensor:
    """Draws images from noise.

    Args:
        model: from ``ddim.load``.
        count: how many.
        steps: S, 1 to ``model.path.levels``.
        eta: in [0, 1], for ``ddim``: 0 is deterministic, 1 is DDPM (Eq. 16 of Song et al. 2021).
        seed: the k-th image has the seed ``seed + k``, whatever the batch; one seed, one x_T, for every S and solver.
        solver: a key of ``ddim.SOLVERS``; ``"ddpm"`` is the sigma-hat variance.
        spacing: a key of ``ddim.SPACINGS``, or a list of t; the model's own by default.
        options: the solver's options, such as ``{"gamma": 0.96}``.
        labels: class labels, one an image, or one (a number, or a list of one) for all: of a class-conditional model,
            and of ``classifier``.
        prompt: what a text-to-image model is to draw: one for all, or one an image. Words cannot be weighed here:
            ``(word:2)`` is refused, and ``\\(word:2)`` is text.
        negative: the prompt that guidance leads away from, as ``prompt``.
        guidance: w of classifier-free guidance, or a ``Guidance``, for a model with text; 7.5 by default.
        size: (height, width) in pixels, where a model takes several; its own by default.
        classifier: from ``ddim.load_classifier``; leads a pixel model, be it unconditional, to ``labels``.
        classifier_weight: w of classifier guidance; 1, the default, is Bayes' rule.
        clip_x0: holds the predicted x0 to [-clip_x0, clip_x0] and derives eps anew; by default as the model's
            scheduler config says (``model.hold``), and infinity holds nothing, as in the paper.
        threshold: dynamic thresholding at this percentile instead.
        batch: images a network call.
        progress: called after each step.
        on_batch: called with the place of a batch's first image and its images, when it is done: to keep what there is.

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
    check_batch(batch)
    checked_seed(seed, count)
    made = solver_with_eta(solver, eta, options)
    grid = grid_for(model, steps, spacing)
    hold, guided_as = hold_for(model, clip_x0, threshold), guidance_for(model, guidance, 7.5)
    if negative and model.text and guided_as.weight == 1:
        raise InputError(f"{negative!r} has no say where the guidance is 1.", parameter="negative")
    if classifier is None and classifier_weight is not None:
        raise InputError(f"{classifier_weight} goes with a classifier; give one too.", parameter="classifier_weight")
    weight = 1.0 if classifier_weight is None else classifier_weight
    out, report = [], Report(progress, grid.steps, count, batch)
    wanted = None if classifier is None else _wanted(model, classifier, labels, count, weight)
    led_only = wanted is not None and not model.classes  # the labels are the classifier's alone
    prompt, negative = asked_of(model, prompt, negative, count)
    cond = model.condition(None if led_only else labels, count, prompt, negative)
    guided = guided_by(model, guided_as, NO_HOLD)  # held once the classifier has led, below
    shape = _shape_of(model, size)
    for begin in range(0, count, batch):
        n = min(batch, count - begin)
        x, noise = start(model, grid, [seed + k for k in range(begin, begin + n)], shape)
        led = guided
        if classifier is not None and wanted is not None:
            led = classifier_guided(guided, classifier, wanted[begin : begin + n], weight)
        denoise = bound(held(led, hold), part_of(cond, begin, n))
        with half_precision_hint(model):
            state = solve(denoise, made, made.init(x, grid), grid, noise=noise, on_step=report)
        out.append(model.decode(made.read(state)))
        if on_batch is not None:
            on_batch(begin, out[-1])
    return torch.cat(out)


def invert(
    model: Model,
    images: ImageLike,
    *,
    steps: int = 50,
    method: str | Inversion | GuidedInversion = "ddim",
    spacing: Spacing | None = None,
    options: Mapping[str, Any] | None = None,
    labels: int | Sequence[int] | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str = "",
    guidance: float | Guidance | None = None,
    clip_x0: float | None = None,
    threshold: float | None = None,
    back: float | None = None,
    seed: int = 0,
    resize: bool = False,
    batch: int = 64,
    progress: Progress | None = None,
    tell: Tell | None = None,
    resume: LatentCode | None = None,
    on_batch: OnCodes | None = None,
) -> LatentCode:
    """Walks real images back to their latent codes.

    Args:
        model: from ``ddim.load``.
        images: a path, a PIL image, a tensor [C, H, W] or [N, C, H, W] in [0, 1], or a list of these.
        steps: S, 1 to ``model.path.levels``.
        method: one of ``ddim.inversion_names()``, or an inversion; ``edict``, ``bdia`` and ``belm`` come back exactly.
        spacing: a key of ``ddim.SPACINGS``, or a list of t; the model's own by default.
        options: the method's options, such as ``{"iterations": 5}``.
        labels: class labels, one an image or one for all.
        prompt: what the images show, for a text-to-image model: one for all, or one an image; as in ``sample``.
        negative: the prompt that guidance leads away from, as ``prompt``.
        guidance: w of the way forward, for a model with text, kept in the code; 1 by default.
        clip_x0, threshold: as for ``sample``, on the way back and, kept in the code, forward. A network that needs its
            x0 held to make pictures needs it here too.
        back: w of the way back, where the method leaves it free: by default as ``guidance`` for reversible solvers,
            which come back exactly only then, and 1 for the others, whose error grows with it. ``null-text``,
            ``negative-prompt`` and ``direct`` have 1 as their own.
        seed: for methods that draw noise: the k-th image has the seed ``seed + k``.
        resize: fit images of another size or number of channels.
        batch: images a network call.
        progress: called after each step.
        tell: called with a step and its loss while a method tunes.
        resume: the ``partial`` of an ``Interrupted``, to go on with in its batches; all else as it was. The code is
            the one that an uninterrupted run gives, bit for bit.
        on_batch: called with the place of a batch's first image and the batch's code, when it is done: to keep what
            there is; of a resumed run also with what was done before.

    Returns:
        The code: the solver's whole state, the grid and the settings.

    Raises:
        InputError: images that do not fit, a value out of range or unknown, or one that could not act.
        DDIMError: the network returned NaN, or the solver diverged; the step is named.
        Interrupted: Ctrl-C once a batch is done, or in ``null-text``, with what there is; a ``KeyboardInterrupt`` to
            whom does not ask.
    """
    need_model(model)
    check_batch(batch)
    if not isinstance(method, (str, Inversion, GuidedInversion)):
        raise InputError(
            f"a {type(method).__name__} is neither a method's name nor an inversion; use one of: "
            f"{', '.join(inversion_names())}.",
            parameter="method",
        )
    if not isinstance(method, str) and options:
        raise InputError("they go with a method's name; an inversion object has its own.", parameter="options")
    inversion = make_inversion(method, options) if isinstance(method, str) else method
    grid = grid_for(model, steps, spacing)
    forward, hold = guidance_for(model, guidance, 1.0), hold_for(model, clip_x0, threshold)
    if back is not None and not model.text:
        raise InputError(
            f"it is a weight of guidance, and the model {model.name!r} takes no prompt; leave it out.", parameter="back"
        )
    pixels = read_images(images, model.picture, resize=resize, multiple=model.multiple)
    checked_seed(seed, len(pixels))
    prompt, negative = asked_of(model, prompt, negative, len(pixels))
    cond = model.condition(labels, len(pixels), prompt, negative)
    prompts = tuple(prompt or ()) if model.text else ()
    if resume is not None:
        partials.check(resume, {"prompts": prompts[: len(resume)], "negative": negative}, len(pixels))

    def told(first: int, part: LatentCode) -> None:
        if on_batch is not None:
            on_batch(first, replace(part, prompts=prompts[first : first + len(part)], negative=negative))

    try:
        code = walk_back(
            model,
            inversion,
            pixels,
            grid,
            cond,
            batch,
            progress,
            forward,
            back=back,
            seed=seed,
            tell=tell,
            resume=resume,
            hold=hold,
            on_batch=told,
        )
    except Interrupted as stop:
        begun = stop.partial
        stop.partial = replace(begun, prompts=prompts[: len(begun)], negative=negative)
        raise
    return replace(code, prompts=prompts, negative=negative)


def reconstruct(
    model: Model,
    code: LatentCode,
    *,
    batch: int = 64,
    together: bool = True,
    progress: Progress | None = None,
    on_batch: OnImages | None = None,
) -> Tensor:
    """Comes forward from codes to images, with the solver, grid and state they were made with.

    Args:
        model: the one that made the code; another of the same shape warns, and so does another dtype.
        code: from ``invert`` or ``LatentCode.load``.
        batch: images a network call.
        together: ask for both of guidance's predictions in one batch; False asks one after the other, with half the
            memory.
        progress: called after each step.
        on_batch: as for ``sample``.

    Returns:
        float tensor [N, C, H, W] in [0, 1].

    Raises:
        InputError: a code of another shape, or without all that its solver needs.
    """
    need_model(model)
    need_code(code)
    check_batch(batch)
    solver = way_forward(model, code)
    out, report = [], Report(progress, steps_of_code(solver, code.grid), len(code), batch)
    for begin in range(0, len(code), batch):
        part = code[begin : begin + batch]
        state = resumed(solver, part.state, code.grid, model.device, model.state_dtype)
        cond = {k: v.to(model.device) for k, v in part.cond.items()}
        extras = {k: v.to(model.device) for k, v in part.extras.items()}
        denoise = bound(guided_by(model, Guidance.of(code.guidance, together), hold_of(code)), cond)
        with half_precision_hint(model):
            end = replay(denoise, solver, state, code.grid, extras, on_step=report)
        out.append(model.decode(solver.read(end)))
        if on_batch is not None:
            on_batch(begin, out[-1])
    return torch.cat(out)


def solver_with_eta(name: str, eta: float, options: Mapping[str, Any] | None) -> Solver:
    """A solver by name, with eta where it has one.

    Raises:
        InputError: eta outside [0, 1], or above 0 with a solver that is deterministic or has its own noise.
    """
    if isinstance(eta, str) or not 0 <= eta <= 1:
        raise InputError(f"{eta} lies outside [0, 1]; 0 is DDIM, 1 is DDPM.", parameter="eta")
    if name == "ddim":
        if options and "eta" in options and eta > 0:
            raise InputError(
                f"it is given twice, as {eta:g} and as the option {options['eta']}; give one.", parameter="eta"
            )
        return make_solver(name, {"eta": float(eta), **(options or {})})
    made = make_solver(name, options)
    if eta > 0:
        why = "always draws sigma-hat noise" if made.stochastic else "is deterministic"
        raise InputError(f"{eta:g} goes with the solver 'ddim' only; {name!r} {why}, use eta = 0.", parameter="eta")
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
