"""Functions that pipelines share: grids, conditions, inversion in batches, and checks of arguments."""

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from .._utils.errors import DDIMWarning, InputError, NotFinite, as_plain, is_number, is_plain, is_whole, out_of_memory
from .._utils.texts import check_text, refuse_weights, texts_for
from ..core.conditioning import PromptConditioning
from ..core.contracts import (
    Inversion,
    InversionInterrupted,
    InversionProblem,
    InversionResult,
    Solver,
    State,
)
from ..core.denoiser import Call
from ..core.grid import Grid
from ..core.guidance import Guidance
from ..core.noise import SeededNoise
from ..core.prediction import NO_HOLD, Hold
from ..inversion import calls
from ..inversion import partial as partials
from ..inversion.latent_code import ADAPTERS, HOLD, LatentCode
from ..models.base import Model
from ..solvers import SOLVERS, make_solver
from ..solvers.lattice import ReversibleSolver
from .events import CodeEvent, EngineEvent, LossEvent, OnEvent, StepEvent, engine_events, silent

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


def invert_batches(
    model: Model,
    inversion: Inversion,
    pixels: Tensor,
    grid: Grid,
    conditions: PromptConditioning,
    batch: int,
    guidance: Guidance,
    *,
    inversion_guidance: float | None = None,
    seed: int = 0,
    resume: LatentCode | None = None,
    hold: Hold = NO_HOLD,
    on_event: OnEvent = silent,
) -> LatentCode:
    """Inverts images in batches; the work of ``invert`` after its arguments were checked.

    Args:
        model: the model.
        inversion: the method.
        pixels: the images, [N, C, H, W] in [0, 1].
        grid: the grid of S + 1 nodes.
        conditions: the conditions of the images, N rows each, or without tensors.
        batch: the number of images per batch. A resumed run uses its own. Halved if the memory is too small.
        guidance: the guidance of sampling from the code.
        inversion_guidance: see ``invert``.
        seed: the seed of the first image; image k has ``seed + k``.
        resume: a partial code to continue from.
        hold: limits x0.
        on_event: see ``invert``.
    """
    count = len(pixels)
    weight = weight_of(inversion, guidance, inversion_guidance)
    empty = empty_code(model, inversion, grid, guidance, inversion_guidance, hold)
    parts, kept = list[InversionResult](), None  # kept: the intermediate results of an interrupted batch
    if resume is not None:
        empty = replace(empty, machine=partials.machine_of(empty, resume))
        partials.check(resume, partials.compared(empty), count)
        batch = int(resume.settings[partials.KEY]["batch"])
        parts, kept = partials.unpacked(resume, model.device)
        if parts:
            on_event(CodeEvent(0, partials.complete(empty, parts), batch))
    layout = calls.layout_of(empty.machine)
    solver = inversion.solver()
    if layout:
        _check_repeatable(model, conditions, grid)
    report = Report(on_event, grid.steps - solver.first(grid), count, batch)
    begin = sum(len(p.state["x"]) for p in parts)
    finished = begin // batch  # batches
    while begin < count:
        part = pixels[begin : begin + batch]
        problem = InversionProblem(
            model,
            conditions[begin : begin + len(part)] if conditions.cond.tensors else conditions,
            guidance,
            weight,
            SeededNoise([seed + k for k in range(begin, begin + len(part))]),
            lambda step, loss: on_event(LossEvent(step, loss)),
            kept,
            hold,
            Call(layout=layout, on_engine=engine_events(on_event)),
        )
        steps = int(resume.settings[partials.KEY]["steps"]) if resume and kept is not None else 0
        report.begin(finished, steps, -(-(count - begin) // batch))
        result = None
        try:
            try:
                with half_precision_hint(model):
                    x0 = model.encode(part)
                    if kept is not None:
                        partials.check_images(kept, x0)
                    result = inversion.invert(problem, x0, grid, report)
            except Exception as error:
                if not out_of_memory(error) or len(part) == 1 or kept is not None:
                    raise
            if result is not None:
                kept = None
                parts.append(result._replace(calls=calls.call_record(len(part))) if layout else result)
                on_event(CodeEvent(begin, partials.complete(empty, parts[-1:]), batch))
        except KeyboardInterrupt as error:
            stop = error
            if resume is not None and kept is not None and not isinstance(error, InversionInterrupted):
                # Ctrl-C before the method took over the intermediate results: they must not be lost.
                stop = partials.interruption_of(resume, kept)
            if not parts and not isinstance(stop, InversionInterrupted):
                raise
            done = sum(len(p.state["x"]) for p in parts)
            raise partials.interrupted(empty, parts, stop, problem.prompts, (count, done, batch)) from None
        if result is not None:
            begin, finished = begin + len(part), finished + 1
        else:  # here and not where the error is caught, which would keep the memory of the failed call
            batch = -(-len(part) // 2)
            on_event(EngineEvent(f"{len(part)} images in one call need too much memory; the next calls have {batch}."))
    return partials.complete(empty, parts)


def _check_repeatable(model: Model, conditions: PromptConditioning, grid: Grid) -> None:
    """Warns, before any work, if a quantised network returns other bits for the same input.

    Two calls are compared. The kernels of other networks are known to repeat their bits.
    """
    if not (layers := model.quantised):
        return
    noise = SeededNoise([0])(torch.empty(1, *model.shape, device=model.device, dtype=model.state_dtype))
    cond = conditions.cond[:1] if conditions.cond.tensors else conditions.cond
    with torch.no_grad():
        (first,), (second,) = model.ask(noise, grid[0], cond), model.ask(noise, grid[0], cond)
    if not torch.equal(first, second):
        warnings.warn(
            f"The quantised network ({', '.join(layers)}) returned other last bits for the same input, so that no "
            "image will be reconstructed to the bit.",
            DDIMWarning,
            stacklevel=4,
        )


def empty_code(
    model: Model,
    inversion: Inversion,
    grid: Grid,
    guidance: Guidance,
    inversion_guidance: float | None = None,
    hold: Hold = NO_HOLD,
) -> LatentCode:
    """Makes the code of an inversion with its settings only, without tensors and prompts.

    The arguments are those of ``invert_batches``.

    Raises:
        InputError: the method does not take this guidance weight, grid or model, or its code could not be saved.
    """
    weight, solver = weight_of(inversion, guidance, inversion_guidance), inversion.solver()
    check_nodes(model, solver, "method")
    check_saveable(inversion, solver)
    guided = conditioned(model)
    records_calls = isinstance(solver, ReversibleSolver)
    return LatentCode(
        state={},
        grid=inversion.part(grid),
        method=inversion.name,
        solver=solver.name,
        options=solver.options,
        settings={
            **inversion.options,
            **({INVERSION_GUIDANCE: weight} if guided else {}),
            **({HOLD: hold.options} if hold.acts else {}),
            **({ADAPTERS: model.adapters} if model.adapters else {}),
        },
        model=model.name,
        fingerprint=model.fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        machine=calls.machine_now(model.device, model.engine, model.exact_layout(), guidance.batched_cfg, model.tf32)
        if records_calls
        else {},
        guidance=guidance.options if guided else {},
    )


def check_nodes(model: Model, solver: Solver, parameter: str) -> None:
    """Raises InputError if a solver calls a network at nodes where it cannot answer.

    These are the data node without noise, for a network that predicts x0, and nodes inside a step, for a network that
    takes only whole timesteps.

    Args:
        model: the model.
        solver: the solver.
        parameter: the argument that chose the solver.
    """
    schedule = model.schedule
    if solver.asks_data and schedule.prediction == "x0" and schedule.path.node(0).sigma == 0:
        raise InputError(
            f"{solver.name!r} calls the network at the data, where the model {model.name!r}, which predicts x0, says "
            "nothing about the noise; use 'bdia', 'belm' or 'edict'.",
            parameter=parameter,
        )
    if solver.asks_between and model.whole_timesteps:
        raise InputError(
            f"{solver.name!r} calls the network between timesteps, but {model.name!r} takes only whole ones "
            "(timestep_dtype); use tableau = 'euler', or 'bdia', 'belm' or 'edict'.",
            parameter=parameter,
        )


def check_saveable(inversion: Inversion, solver: Solver) -> None:
    """Raises InputError if the code of a method could not be saved and reconstructed.

    The registry must return the solver for its name, and all options must be plain values.
    """
    found = SOLVERS.get(solver.name)
    if found is not type(solver):
        other = "is not in" if found is None else "is another one in"
        raise InputError(
            f"its code would name the solver {solver.name!r}, which {other} ddim.SOLVERS, so that it could not be "
            f"reconstructed; give the solver its own name and call ddim.SOLVERS.add({type(solver).__name__}) first.",
            parameter="method",
        )
    for key, value in {**inversion.options, **solver.options}.items():
        if not is_plain(value):
            raise InputError(
                f"its option {key} = {value!r} cannot be written into a code; use a finite number, a text, true, false "
                "or None.",
                parameter="method",
            )


def weight_of(inversion: Inversion, forward: Guidance, requested: float | None) -> float:
    """Returns the guidance weight of the inversion.

    It is the weight that the method fixes, else the requested one, else that of sampling for exact methods and 1 for
    others.

    Args:
        inversion: the method.
        forward: the guidance of sampling.
        requested: the requested weight, or None.

    Raises:
        InputError: the requested weight is not a number, or the method fixes another one.
    """
    own = inversion.inversion_guidance
    if requested is not None and not is_number(requested):
        raise InputError(f"{requested!r} is not a number; 1 is the conditional model.", parameter="inversion_guidance")
    if own is not None:
        if requested not in (None, own):
            raise InputError(
                f"{requested:g} does not go with {inversion.name!r}, which always inverts with the weight {own:g}.",
                parameter="inversion_guidance",
            )
        return own
    return as_plain(requested) if requested is not None else (float(forward.weight) if inversion.exact else 1.0)


def solver_of(model: Model, code: LatentCode) -> Solver:
    """Makes the solver of a code, and checks whether a model can sample from the code.

    Raises:
        InputError: the model has another shape or other conditions, or the code lacks something its solver needs.

    Warns:
        DDIMWarning: the model is not the one that made the code.
    """
    takes = model.condition(0 if model.classes else None, 1, size=picture_shape(model, code)[1:])
    dtype = str(model.dtype).removeprefix("torch.")
    code.check(model.name, model.fingerprint, state_shape(model), dtype, takes, model.adapters)
    labels = code.conditions.cond.tensors.get("labels")
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < model.classes:
        raise InputError(
            f"it is of classes up to {int(labels.max())} (model {code.model!r}), but the model {model.name!r} has "
            f"{model.classes}.",
            parameter="code",
        )
    hold_of(code)  # raises now, and not after the first steps, if the setting is invalid
    solver = make_solver(code.solver, code.options)
    check_nodes(model, solver, "code")
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


def hold_of(code: LatentCode) -> Hold:
    """Returns the limit of x0 of a code, for inversion and sampling. Raises InputError if it is invalid."""
    return Hold.of(code.settings.get(HOLD))


def guidance_for(model: Model, requested: float | Guidance | None, default: float) -> Guidance:
    """Returns the settings of classifier-free guidance.

    Args:
        model: the model.
        requested: a weight, or all settings; None for the default.
        default: the default weight of a text model. For other models it is 1.

    Raises:
        InputError: a number is out of range, the model has no conditions, or ``embedded`` is set and its network does
            not take it.
    """
    if requested is not None and not conditioned(model):
        towards = (
            "a class, and the model {!r} has no null class"
            if model.classes
            else ("a prompt, and the model {!r} takes none")
        )
        raise InputError(f"it leads towards {towards.format(model.name)}; leave it out.", parameter="guidance")
    own = default if model.text else 1.0
    guidance = requested if isinstance(requested, Guidance) else Guidance(own if requested is None else requested)
    check_embedded(model, guidance)
    return replace(guidance, batched_cfg=guidance.batched_cfg and not model.low_memory)


def check_embedded(model: Model, guidance: Guidance) -> None:
    """Raises InputError if ``guidance.embedded`` is set and the network of the model does not take it."""
    if guidance.embedded is not None and not model.info.embedded:
        raise InputError(
            f"{guidance.embedded:g} is an input of guidance-distilled networks, which {model.name!r} does not take; "
            "leave it out.",
            parameter="embedded",
        )


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


def need_text(model: Model) -> None:
    """Raises InputError if the model takes no prompts."""
    if not model.text:
        raise InputError(
            f"{model.name!r} takes no prompts, so that words cannot edit; use a text model.", parameter="model"
        )


def need_code(code: object, parameter: str = "code") -> None:
    """Raises InputError if ``code`` is not a ``LatentCode``."""
    if not isinstance(code, LatentCode):
        raise InputError(
            f"a {type(code).__name__} is not a latent code; give what ddim.invert or LatentCode.load returns.",
            parameter=parameter,
        )


def state_shape(model: Model) -> tuple[int, int, int]:
    """Returns the shape (C, H, W) of the model's samples; 0 stands for any height or width."""
    return (model.shape[0], 0, 0) if model.multiple else model.shape


def picture_shape(model: Model, code: LatentCode) -> tuple[int, int, int]:
    """Returns the shape (C, H, W) of the images that a code reconstructs."""
    if not model.multiple:
        return model.picture
    height, width = code.state["x"].shape[2:]
    return model.picture[0], height * model.multiple, width * model.multiple


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


def grid_for(model: Model, steps: int, spacing: Spacing | None, size: tuple[int, int] | None = None) -> Grid:
    """Returns the grid of a run.

    Args:
        model: the model.
        steps: the number of steps S.
        spacing: the spacing, or a list of t; None uses the default of the model.
        size: (height, width) of the sample, in latent pixels for a latent model; None uses the default of the model.
            Some schedules depend on it.
    """
    return model.schedule.grid(steps, spacing, model.shape[1:] if size is None else size)


def latent_size(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of the sample for images of this (height, width) in pixels."""
    per = model.multiple or 1
    return size[0] // per, size[1] // per


def check_run(batch: int, on_event: object) -> None:
    """Raises InputError if ``batch`` is not a number of images, or if ``on_event`` is not callable."""
    check_batch(batch)
    if not callable(on_event):
        raise InputError(
            f"a {type(on_event).__name__} cannot be called; give a function of one event, or leave it out.",
            parameter="on_event",
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
