"""Functions that pipelines share: grids, conditions, and checks of arguments."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from .._utils.errors import InputError, NotFinite, is_number, is_whole, warn
from .._utils.texts import check_text, refuse_weights, texts_for
from ..core.conditioning import PromptConditioning
from ..core.contracts import Solver, State
from ..core.grid import Grid
from ..core.guidance import Guidance
from ..core.noise import SeededNoise
from ..core.prediction import Hold
from ..inversion.extras import image_of
from ..inversion.latent_code import ADAPTERS, HOLD, QUANTISED, LatentCode
from ..models.base import Model
from ..solvers import make_solver
from ..solvers.lattice import ReversibleSolver
from .capabilities import check_guidance, check_solver, no_guidance
from .events import OnEvent, StepEvent

Spacing = str | Sequence[float]
_P = ParamSpec("_P")
_R = TypeVar("_R")
INVERSION_GUIDANCE = "inversion_guidance"
"""A key of ``LatentCode.settings``: the guidance weight of the inversion; absent for a model without conditions."""


def in_model_threads(pipeline: Callable[Concatenate[Model, _P], _R]) -> Callable[Concatenate[Model, _P], _R]:
    """Decorates a pipeline, so that torch's threads are chosen by the work of its model; see ``Model.in_threads``."""

    @wraps(pipeline)
    def run(model: Model, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not isinstance(model, Model):  # pyright: ignore[reportUnnecessaryIsInstance]  # the pipeline refuses it
            return pipeline(model, *args, **kwargs)
        with model.in_threads():
            return pipeline(model, *args, **kwargs)

    return run


def conditioned(model: Model) -> bool:
    """Whether guidance can have an effect: the model takes prompts, or classes and has a null class."""
    return model.text or model.info.null_class is not None


def check_made_for(model: Model, code: LatentCode) -> None:
    """Checks first of all whether a code is of a model like this one; what else is wrong with it, ``solver_of`` says.

    Raises:
        InputError: the samples of the model have another shape, or it has other conditions.
    """
    if code.fingerprint and code.fingerprint == model.fingerprint:
        return
    code.check_shape(model.name, state_shape(model))
    try:
        takes = _conditions_for(model, code)
    except InputError as error:  # such as images larger than the model can make
        raise InputError(
            f"it was made by the model {code.model!r}, and the model {model.name!r} does not take it "
            f"({error.message.rstrip('.')}); use the model that made it.",
            parameter="code",
        ) from None
    code.check_conditions(model.name, takes, model.info.optional_conditions)


def _conditions_for(model: Model, code: LatentCode) -> PromptConditioning:
    """The conditions that the model makes for one image of the code's size."""
    return model.condition(0 if model.classes else None, 1, size=picture_shape(model, code)[1:])


def solver_of(model: Model, code: LatentCode) -> Solver:
    """Makes the solver of a code, and checks whether a model can sample from the code.

    Raises:
        InputError: the model has another shape or other conditions, or the code lacks something its solver needs.

    Warns:
        DDIMWarning: the model is not the one that made the code.
    """
    check_made_for(model, code)
    takes = _conditions_for(model, code)
    dtype = str(model.dtype).removeprefix("torch.")
    more = {"optional": model.info.optional_conditions, "quantised": model.quantised}
    code.check(model.name, model.fingerprint, state_shape(model), dtype, takes, model.adapters, **more)
    labels = code.conditions.cond.tensors.get("labels")
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < model.classes:
        raise InputError(
            f"it is of classes up to {int(labels.max())} (model {code.model!r}), but the model {model.name!r} has "
            f"{model.classes}.",
            parameter="code",
        )
    hold_of(code)  # raises now, and not after the first steps, if the setting is invalid
    solver = make_solver(code.solver, code.options)
    check_solver(model, solver, "code")
    if solver.stochastic and "noise" not in code.extras:
        raise InputError(
            f"its solver {code.solver!r} draws noise, which the code does not contain; it cannot be replayed.",
            parameter="code",
        )
    needed = solver.keys if isinstance(solver, ReversibleSolver) else ("x",)
    if missing := sorted(set(needed) - set(code.state)):
        raise InputError(
            f"it lacks {', '.join(missing)}, which {code.solver!r} needs to reconstruct it.", parameter="code"
        )
    return solver


def read_prompts(
    model: Model, prompt: str | Sequence[str] | None, negative: str | None, count: int
) -> tuple[str | Sequence[str] | None, str | None]:
    """Reads the prompts of a text model, one for each image, and its negative prompt.

    For a model without text, both are returned unchanged; ``Model.condition`` refuses them.

    Raises:
        InputError: the prompts are no texts, their number is wrong, a text cannot be read, or words are weighted.
    """
    if not model.text:
        return prompt, negative
    prompts = texts_for("" if prompt is None else prompt, count, "prompt")
    plain = None if negative is None else refuse_weights(check_text(negative, "negative"), "negative")
    return [refuse_weights(text, "prompt") for text in prompts], plain


def hold_for(model: Model, clip_x0: float | None, threshold: float | None) -> Hold:
    """Returns how x0 is limited: by the arguments, or if both are None, as the config of the model says.

    Raises:
        InputError: a number is out of range, or both arguments are set.
    """
    return model.schedule.hold if clip_x0 is None and threshold is None else Hold(clip_x0, threshold)


def made_with(model: Model, hold: Hold) -> dict[str, Any]:
    """Returns what ``LatentCode.settings`` records of a model and the limit of x0, as far as there is any."""
    return {
        **({HOLD: hold.options} if hold.acts else {}),
        **({ADAPTERS: model.adapters} if model.adapters else {}),
        **({QUANTISED: ", ".join(model.quantised)} if model.quantised else {}),
    }


def facts_of(model: Model) -> dict[str, Any]:
    """Returns the fields of a ``LatentCode`` by which it recognises its model."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {"model": model.name, "fingerprint": model.fingerprint, "dtype": dtype}


def hold_of(code: LatentCode) -> Hold:
    """Returns the limit of x0 of a code, for inversion and sampling. Raises InputError if it is invalid."""
    return Hold.of(code.settings.get(HOLD))


def translated(
    model: Model, guidance: float | Guidance | None, guidance_scale: float | None
) -> float | Guidance | None:
    """Returns the guidance that was asked for, as ours or as the number of the model's own pipeline.

    Raises:
        InputError: both are given, the number is none, or the model does not take it.
    """
    if guidance_scale is None:
        return guidance
    if guidance is not None:
        raise InputError(f"{guidance_scale} does not go with guidance; use one of the two.", parameter="guidance_scale")
    if not is_number(guidance_scale):
        raise InputError(f"{guidance_scale!r} is not a number; 7.5 is usual.", parameter="guidance_scale")
    return model.guidance_of(float(guidance_scale))


def guidance_for(model: Model, requested: float | Guidance | None, default: float) -> Guidance:
    """Returns the settings of classifier-free guidance.

    Args:
        model: the model.
        requested: a weight, or all settings; None for the default.
        default: the default weight of a text model. For other models it is 1.

    Raises:
        InputError: a number is out of range, the model has no conditions, or it does not take this guidance.
    """
    if requested is not None and not conditioned(model):
        raise no_guidance(model.info)
    own = default if model.text else 1.0
    guidance = requested if isinstance(requested, Guidance) else Guidance(own if requested is None else requested)
    check_guidance(model, guidance)
    if guidance.weight == 0 and model.text and model.info.guidance == 1:
        warn(
            f"The guidance 0 is the unconditional model, which ignores the prompt. To sample {model.name!r} without "
            "guidance, as guidance_scale = 0 in diffusers does, use guidance = 1."
        )
    return replace(guidance, batched_cfg=guidance.batched_cfg and not model.low_memory)


def say_assumed(model: Model, *given: object) -> None:
    """Warns that the usual steps and guidance of a model are a guess, if one of the ``given`` is None and takes it."""
    if model.info.assumed and any(value is None for value in given):
        warn(model.info.assumed)


def need_model(model: object) -> None:
    """Raises InputError if ``model`` is not a ``Model``."""
    if isinstance(model, Model):
        return
    what = f"the text {model!r}" if isinstance(model, str) else f"a {type(model).__name__}"
    raise InputError(
        f"{what} is not a model; give what ddim.load returns. ddim.Model.from_network makes a model from your own "
        "network.",
        parameter="model",
    )


def need_code(code: object, parameter: str = "code") -> None:
    """Raises InputError if ``code`` is not a ``LatentCode``, or holds encoded images, from which nothing is sampled."""
    if not isinstance(code, LatentCode):
        raise InputError(
            f"a {type(code).__name__} is not a latent code; give what ddim.invert or LatentCode.load returns.",
            parameter=parameter,
        )
    if is_encoded(code):
        raise InputError(
            f"it is of {code.method!r}, which edits without an inversion: it holds the encoded image and no noise to "
            "sample from; use edit.",
            parameter=parameter,
        )


def encoded_images(code: LatentCode) -> Tensor | None:
    """Returns the encoded images that a code was made from, [N, ...], or None if it does not hold them."""
    return code.x if is_encoded(code) else image_of(code.extras)


def is_encoded(code: LatentCode) -> bool:
    """Whether a code holds encoded images and no noise: that of an editor without an inversion."""
    return "editor" in code.settings


def state_shape(model: Model) -> tuple[int, int, int]:
    """Returns the shape (C, H, W) of the model's samples; 0 stands for any height or width."""
    return (model.shape[0], 0, 0) if model.multiple else model.shape


def picture_shape(model: Model, code: LatentCode) -> tuple[int, int, int]:
    """Returns the shape (C, H, W) of the images that a code reconstructs."""
    if not model.multiple:
        return model.picture
    height, width = code.state["x"].shape[2:]
    return model.picture[0], height * model.downscaling, width * model.downscaling


@contextmanager
def half_precision_hint(model: Model) -> Generator[None]:
    """A context that adds a hint to ``NotFinite`` errors of a float16 model: to use another dtype."""
    try:
        yield
    except NotFinite as error:
        if model.dtype != torch.float16:
            raise
        hint = "float16 overflows above 65504; load the model with bfloat16 or float32."
        raise NotFinite(error.message, step=error.step, hint=hint) from None


def prior(model: Model, grid: Grid, seeds: Sequence[int], shape: tuple[int, ...]) -> tuple[Tensor, SeededNoise]:
    """Returns x_T for each seed, [N, *shape], and the source of noise for the steps."""
    noise = SeededNoise(seeds)
    x = noise(torch.empty(len(seeds), *shape, dtype=model.state_dtype, device=model.device))
    return x * model.schedule.prior_std(grid), noise


def grid_for(model: Model, steps: int | None, spacing: Spacing | None, size: tuple[int, int] | None = None) -> Grid:
    """Returns the grid of a run.

    Args:
        model: the model.
        steps: the number of steps S; None uses that of the model (``ModelInfo.steps``).
        spacing: the spacing, or a list of t; None uses the default of the model.
        size: (height, width) of the sample, in latent pixels for a latent model; None uses the default of the model.
            Some schedules depend on it.

    Raises:
        InputError: no such grid, or the network predicts eps or the score, and the grid begins where x is noise alone
            (alpha = 0).
    """
    count = model.info.steps if steps is None else steps
    grid = model.schedule.grid(count, spacing, model.shape[1:] if size is None else size)
    if grid[0].alpha == 0 and model.schedule.prediction in ("eps", "score"):
        raise InputError(
            f"the grid begins at t = {grid[0].t:g}, where no signal is left (alpha = 0), and the model {model.name!r} "
            f"predicts {model.schedule.prediction}, which says nothing there; use 'leading'.",
            parameter="spacing",
        )
    return grid


def latent_size(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of the sample for images of this (height, width) in pixels."""
    return size[0] // model.downscaling, size[1] // model.downscaling


def check_run(batch: int, on_event: object, on_code: object = None) -> None:
    """Raises InputError if ``batch`` is not a number of images, or if a callback is not callable."""
    check_batch(batch)
    given = {"event": on_event} if on_code is None else {"event": on_event, "code": on_code}
    for what, callback in given.items():
        if not callable(callback):
            raise InputError(
                f"a {type(callback).__name__} cannot be called; give a function of one {what}, or leave it out.",
                parameter=f"on_{what}",
            )


def check_batch(batch: int) -> None:
    """Raises InputError if ``batch`` is not a whole number of at least 1."""
    if not is_whole(batch) or batch < 1:
        raise InputError(f"{batch} is not a number of images; use 1 or more.", parameter="batch")


class Report:
    """Counts the steps of all batches, and reports a ``StepEvent`` after each; the ``on_step`` of the solver loop.

    Args:
        on_event: the callback for events.
        steps: the number of steps of one batch.
        count, batch: the number of images in all and per batch.
    """

    def __init__(self, on_event: OnEvent, steps: int, count: int, batch: int) -> None:
        self.on_event, self.done = on_event, 0
        self.steps, self.total = steps, steps * -(-count // batch)

    def begin(self, finished: int, steps: int, left: int) -> None:
        """Sets the counter to the start of a batch.

        A method need not report all of its steps, so that the counter may have stopped short of this.

        Args:
            finished: the number of finished batches.
            steps: how many steps of this batch are already done.
            left: the number of batches that are not finished.
        """
        self.done, self.total = finished * self.steps + steps, (finished + left) * self.steps

    def __call__(self, i: int, state: State) -> None:
        """Counts a step and reports it."""
        self.done += 1
        self.on_event(StepEvent(self.done, self.total))
