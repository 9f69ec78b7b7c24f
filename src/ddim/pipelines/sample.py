"""The pipelines ``sample``, which draws images from noise, and ``seeded_code``, which makes codes of such images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole
from ..core.contracts import Solver
from ..core.denoiser import Call, Denoiser, with_hold
from ..core.grid import Grid
from ..core.guidance import Guidance, check_classifier_weight, classifier_guided, with_embedded
from ..core.noise import checked_seed
from ..core.prediction import NO_HOLD, Hold
from ..core.solve import solve
from ..inversion.latent_code import SAMPLED, LatentCode
from ..models.base import Model, class_labels
from ..models.classifier import NoisyClassifier
from ..solvers import make_solver
from ..solvers.lattice import ReversibleSolver
from .batches import check_saveable
from .capabilities import check_acts, check_negative, check_pull, check_solver
from .common import (
    Report,
    Spacing,
    check_run,
    conditioned,
    facts_of,
    grid_for,
    guidance_for,
    half_precision_hint,
    hold_for,
    in_model_threads,
    latent_size,
    made_with,
    need_model,
    prior,
    read_prompts,
    say_assumed,
    translated,
)
from .events import ImagesEvent, OnEvent, engine_events, silent


@in_model_threads
def sample(
    model: Model,
    count: int = 16,
    *,
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
    solver: str | Solver | None = None,
    spacing: Spacing | None = None,
    options: Mapping[str, Any] | None = None,
    labels: int | Sequence[int] | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str | None = None,
    guidance: float | Guidance | None = None,
    guidance_scale: float | None = None,
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
        count: the number of images.
        steps: the number of steps S, from 1 to ``model.schedule.path.levels``; by default the usual number of the model
            (``ModelInfo.steps``): 50, or fewer for a model that is distilled to a few.
        eta: the noise of the solver ``ddim``, in [0, 1]: 0 is deterministic, 1 is DDPM (Eq. 16 of Song et al. 2021).
        seed: the seed of the first image. Image k has the seed ``seed + k``, whatever the batch size, and its x_T
            depends on this seed alone.
        solver: a key of ``ddim.SOLVERS``, or a solver such as ``ddim.BDIA(gamma=0.96)``; by default that of the model
            (``Schedule.solver``): ``"ddim"``, or ``"lcm"`` or ``"tcd"`` for a model with such a scheduler.
            ``"ddpm"`` has the larger variance, sigma-hat.
        spacing: a key of ``ddim.SPACINGS``, or a list of t; by default that of the model.
        options: the options of a solver that is chosen by name, such as ``{"gamma": 0.96}``.
        labels: the class labels of a class-conditional model or of ``classifier``: one for each image, or one (a number
            or a list of one) for all.
        prompt: the prompt of a text-to-image model: one for all images, or one for each. Word weights are not supported
            here: ``(word:2)`` is an error, and ``\\(word:2)`` is plain text.
        negative: the negative prompt, which guidance leads away from; one for all images.
        guidance: the weight w of classifier-free guidance, or a ``Guidance``. By default that of the model for text
            (``ModelInfo.guidance``: 7.5 for Stable Diffusion, 5 for SDXL, 1 for FLUX, unless its folder names
            another), and 1 for a model with classes.
            With classes, guidance leads away from the null class. ``Guidance.embedded`` is the scale that a
            guidance-distilled network takes as an input; by default the model's usual one (``ModelInfo.embedded``).
        guidance_scale: the number that the model's own pipeline in diffusers takes, in place of ``guidance``; see
            ``Model.guidance_of``.
        size: (height, width) of the images in pixels, if the model supports several; by default that of the model.
        classifier: a classifier from ``ddim.load_classifier``, which guides a pixel model to ``labels``. The model may
            be unconditional.
        classifier_weight: the weight w of classifier guidance. The default 1 is Bayes' rule.
        clip_x0: clips the predicted x0 to [-clip_x0, clip_x0] and recomputes eps. By default the scheduler config of
            the model decides (``model.schedule.hold``). Infinity does not clip, as in the paper.
        threshold: uses dynamic thresholding at this percentile instead of clipping.
        batch: the number of images per network call.
        on_event: called with a ``StepEvent`` after each step, and with an ``ImagesEvent`` after each batch.

    Returns:
        a float tensor [count, C, H, W] in [0, 1].

    Raises:
        InputError: a value is out of range or unknown, or it would have no effect: eta > 0 with another solver than
            ``ddim``, guidance or a prompt for a model that takes none, ``classifier_weight`` without ``classifier``.
        NotFinite: the sample contains NaN or infinity after a step.
    """
    plan = _planned(
        model,
        count,
        steps=steps,
        spacing=spacing,
        size=size,
        solver=solver,
        eta=eta,
        options=options,
        seed=seed,
        guidance=guidance,
        guidance_scale=guidance_scale,
        negative=negative,
        clip_x0=clip_x0,
        threshold=threshold,
    )
    check_run(batch, on_event)
    chosen, grid = plan.solver, plan.grid
    if classifier is None and classifier_weight is not None:
        raise InputError(f"{classifier_weight} goes with a classifier; give one too.", parameter="classifier_weight")
    weight = 1.0 if classifier_weight is None else classifier_weight
    report = Report(on_event, grid.steps, count, batch)
    call = Call(on_engine=engine_events(on_event))
    out: list[Tensor] = []
    targets = None if classifier is None else _target_classes(model, classifier, labels, count, weight)
    # Labels of an unconditional model are for the classifier only.
    for_classifier = targets is not None and not model.classes
    prompt, negative = read_prompts(model, prompt, negative, count)
    conditions = model.condition(None if for_classifier else labels, count, prompt, negative, size)
    for begin in range(0, count, batch):
        n = min(batch, count - begin)
        x, noise = prior(model, grid, [seed + k for k in range(begin, begin + n)], plan.shape)
        guided: Denoiser = model.guided(plan.guidance, conditions[begin : begin + n], hold=NO_HOLD, call=call)
        if classifier is not None and targets is not None:
            guided = classifier_guided(guided, classifier, targets[begin : begin + n], weight)
        denoise = with_hold(guided, plan.hold)  # last, because classifier guidance changes x0
        with half_precision_hint(model):
            state = solve(denoise, chosen, chosen.init(x, grid), grid, noise=noise, on_step=report)
        out.append(model.decode(chosen.read(state)))
        on_event(ImagesEvent(begin, out[-1]))
    return torch.cat(out)


@in_model_threads
def seeded_code(
    model: Model,
    count: int = 1,
    *,
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
    solver: str | Solver | None = None,
    spacing: Spacing | None = None,
    options: Mapping[str, Any] | None = None,
    labels: int | Sequence[int] | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str | None = None,
    guidance: float | Guidance | None = None,
    guidance_scale: float | None = None,
    size: tuple[int, int] | None = None,
    clip_x0: float | None = None,
    threshold: float | None = None,
) -> LatentCode:
    """Makes the latent code of the images that ``sample`` draws with the same arguments, without calling the network.

    It holds x_T of each seed, and for a solver that adds noise the noise of every step. As with the codes of
    photographs, ``reconstruct`` draws the images, ``edit`` edits them (with the same noise for source and target), and
    ``interpolate`` goes from one to the next (Song et al. 2021, section 5.3).

    Args:
        model, count, steps, eta, seed, spacing, options, labels, prompt, negative, guidance, guidance_scale, size,
            clip_x0, threshold: as for ``sample``.
        solver: as for ``sample``, but none of the reversible solvers, whose codes ``invert`` makes.

    Returns:
        the code of ``count`` images, whose ``method`` is ``"sample"``.

    Raises:
        InputError: as for ``sample``, the solver is a reversible one, or its code could not be saved.
    """
    plan = _planned(
        model,
        count,
        steps=steps,
        spacing=spacing,
        size=size,
        solver=solver,
        eta=eta,
        options=options,
        seed=seed,
        guidance=guidance,
        guidance_scale=guidance_scale,
        negative=negative,
        clip_x0=clip_x0,
        threshold=threshold,
    )
    check_saveable(plan.solver, "solver")
    if isinstance(plan.solver, ReversibleSolver):
        raise InputError(
            f"{plan.solver.name!r} has codes of images only, which invert makes; use 'ddim'.", parameter="solver"
        )
    prompt, negative = read_prompts(model, prompt, negative, count)
    conditions = model.condition(labels, count, prompt, negative, size)
    x, noise = prior(model, plan.grid, [seed + k for k in range(count)], plan.shape)
    extras = {"noise": torch.stack([noise(x) for _ in range(plan.grid.steps)], 1)} if plan.solver.stochastic else {}
    return LatentCode(
        state={"x": x},
        grid=plan.grid,
        method=SAMPLED,
        solver=plan.solver.name,
        options=plan.solver.options,
        settings={"seed": seed, **made_with(model, plan.hold)},
        **facts_of(model),
        conditions=with_embedded(conditions, plan.guidance.embedded),
        extras=extras,
        prompts=tuple(prompt or ()) if model.text else (),
        negative=negative,
        guidance=plan.guidance.options if conditioned(model) else {},
    )


class _Plan(NamedTuple):
    """What ``sample`` and ``seeded_code`` have found out about a run before they begin."""

    solver: Solver
    grid: Grid
    guidance: Guidance
    hold: Hold
    shape: tuple[int, ...]


def _planned(
    model: Model,
    count: int,
    *,
    steps: int | None,
    spacing: Spacing | None,
    size: tuple[int, int] | None,
    solver: str | Solver | None,
    eta: float,
    options: Mapping[str, Any] | None,
    seed: int,
    guidance: float | Guidance | None,
    guidance_scale: float | None,
    negative: str | None,
    clip_x0: float | None,
    threshold: float | None,
) -> _Plan:
    """Checks arguments of ``sample``, and returns what they mean."""
    need_model(model)
    if not is_whole(count) or count < 1:
        raise InputError(f"{count} is not a number of images; use 1 or more.", parameter="count")
    guidance = translated(model, guidance, guidance_scale)
    checked_seed(seed, count)
    chosen = solver_for(model, solver, eta, options)
    check_solver(model, chosen)
    shape = _shape_of(model, size)
    grid = grid_for(model, steps, spacing, (shape[1], shape[2]))
    say_assumed(model, steps, guidance)
    guided_as = guidance_for(model, guidance, model.info.guidance).on(grid)
    check_acts(guided_as)
    check_pull(guided_as)
    check_negative(model, negative, guided_as.weight)
    return _Plan(chosen, grid, guided_as, hold_for(model, clip_x0, threshold), shape)


def solver_for(model: Model, solver: str | Solver | None, eta: float, options: Mapping[str, Any] | None) -> Solver:
    """Makes the solver of ``sample`` for a model: its own by default, with the options of its schedule.

    Raises:
        InputError: as for ``solver_with_eta``.
    """
    own = model.schedule
    chosen = own.solver if solver is None else solver
    if isinstance(chosen, str) and chosen == own.solver:
        options = {**own.solver_options, **(options or {})}
    return solver_with_eta(chosen, eta, options)


def solver_with_eta(solver: str | Solver, eta: float, options: Mapping[str, Any] | None) -> Solver:
    """Makes the solver of ``sample``, where ``eta`` is a short form of the option of ``ddim``.

    Raises:
        InputError: ``eta`` lies outside [0, 1], or it is above 0 with a solver other than ``ddim`` by name.
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
        raise InputError(
            f"{eta:g} was given besides a solver that has its own; give DDIM(eta={eta:g}).", parameter="eta"
        )
    if eta > 0 and made.name == "tcd":
        raise InputError(
            f"{eta:g} goes with the solver 'ddim' only; 'tcd' has the option gamma, which diffusers calls eta. Use "
            f"eta = 0 and options = {{'gamma': {eta:g}}} (--option gamma={eta:g} on the command line).",
            parameter="eta",
        )
    if eta > 0:
        why = _NOISE.get(made.name, "has its own noise") if made.stochastic else "is deterministic"
        raise InputError(
            f"{eta:g} goes with the solver 'ddim' only; {made.name!r} {why}, use eta = 0.", parameter="eta"
        )
    return made


_NOISE = {
    "ddpm": "always draws sigma-hat noise",
    "lcm": "has no such option, because each of its steps draws all of its noise anew",
}
"""Stochastic solver -> what an error says of its noise."""


def _target_classes(
    model: Model,
    classifier: NoisyClassifier,
    labels: int | Sequence[int] | None,
    count: int,
    weight: float,
) -> Tensor:
    """Returns the classes to guide to, int64 [count]. Raises InputError if the classifier does not fit the model."""
    check_classifier_weight(weight)
    if model.text or classifier.shape != model.shape:
        sides = "x".join(map(str, classifier.shape))
        raise InputError(
            f"{classifier.name!r} classifies images of {sides}; the model {model.name!r} works on "
            f"{'latents' if model.text else 'images'} of {'x'.join(map(str, model.shape))}.",
            parameter="classifier",
        )
    if labels is None:
        raise InputError(
            f"a classifier leads to a class; give one or more, from 0 to {classifier.classes - 1}.", parameter="labels"
        )
    return class_labels(labels, count, classifier.classes, classifier.name).to(model.device)


def _shape_of(model: Model, size: tuple[int, int] | None) -> tuple[int, ...]:
    """Returns the shape (C, H, W) of the sample for a size in pixels, or for the default size of the model."""
    if size is None or tuple(size) == model.picture[1:]:
        return model.shape
    m = model.multiple
    if not m:
        raise InputError(
            f"the model {model.name!r} draws images of height {model.picture[1]} and width {model.picture[2]} only.",
            parameter="size",
        )
    near = [max(m, round(side / m) * m) for side in size]
    if list(size) != near:
        raise InputError(
            f"height {size[0]} and width {size[1]} must be multiples of {m}, such as {near[0]} and {near[1]}.",
            parameter="size",
        )
    return (model.shape[0], *latent_size(model, (near[0], near[1])))
