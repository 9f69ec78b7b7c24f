"""What the pipelines share: grids, conditions, inversion in batches, and what is checked before any work."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from .._utils.errors import InputError, NotFinite, as_plain, is_number, is_plain, is_whole
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
from ..core.denoiser import PLAIN, Call
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
from .events import CodeEvent, LossEvent, OnEvent, StepEvent, silent

Spacing = str | Sequence[float]
SETTING = "inversion_guidance"
"""In ``LatentCode.settings``: the weight of the way to noise; absent for a model without conditions."""


def conditioned(model: Model) -> bool:
    """Whether guidance can act: the model takes prompts, or classes with one that stands for none."""
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
    """What ``invert`` does once images, grid and conditions are known."""
    count = len(pixels)
    weight = weight_of(inversion, guidance, inversion_guidance)
    empty = empty_code(model, inversion, grid, guidance, inversion_guidance, hold)
    parts, begun = list[InversionResult](), None
    if resume is not None:
        empty = replace(empty, machine=partials.machine_of(empty, resume))
        partials.check(resume, partials.compared(empty), count)
        batch = int(resume.settings[partials.KEY]["batch"])
        parts, begun = partials.unpacked(resume, model.device)
        if parts:
            on_event(CodeEvent(0, partials.whole(empty, parts)))
    layout = calls.layout_of(empty.machine)
    solver = inversion.solver()
    report = Report(on_event, grid.steps - solver.first(grid), count, batch)
    for begin in range(sum(len(p.state["x"]) for p in parts), count, batch):
        part = pixels[begin : begin + batch]
        problem = InversionProblem(
            model,
            conditions[begin : begin + len(part)] if conditions.cond.tensors else conditions,
            guidance,
            weight,
            SeededNoise([seed + k for k in range(begin, begin + len(part))]),
            lambda step, loss: on_event(LossEvent(step, loss)),
            begun,
            hold,
            Call(layout=layout) if layout else PLAIN,
        )
        steps = int(resume.settings[partials.KEY]["steps"]) if resume and begun is not None else 0
        report.begin(begin // batch, steps)
        try:
            with half_precision_hint(model), calls.untimed() if layout else nullcontext():
                x0 = model.encode(part)
                if begun is not None:
                    partials.check_images(begun, x0)
                result = inversion.invert(problem, x0, grid, report)
                parts.append(result._replace(calls=calls.recorded(len(part))) if layout else result)
            begun = None
            on_event(CodeEvent(begin, partials.whole(empty, parts[-1:])))
        except KeyboardInterrupt as error:
            stop = error
            if resume is not None and begun is not None and not isinstance(error, InversionInterrupted):
                stop = partials.as_held(resume, begun)  # before the method had it in hand
            if not parts and not isinstance(stop, InversionInterrupted):
                raise
            done = sum(len(p.state["x"]) for p in parts)
            raise partials.interrupted(empty, parts, stop, problem.prompts, (count, done, batch)) from None
    return partials.whole(empty, parts)


def empty_code(
    model: Model,
    inversion: Inversion,
    grid: Grid,
    guidance: Guidance,
    inversion_guidance: float | None = None,
    hold: Hold = NO_HOLD,
) -> LatentCode:
    """What is known of a code before the inversion: all but tensors and prompts; as for ``invert_batches``.

    Raises:
        InputError: a weight of the way to noise, or a grid, that the method does not take; a method that no code can
            name.
    """
    weight, solver = weight_of(inversion, guidance, inversion_guidance), inversion.solver()
    need_writable(inversion, solver)
    acts = conditioned(model)
    bits = isinstance(solver, ReversibleSolver)
    return LatentCode(
        state={},
        grid=inversion.part(grid),
        method=inversion.name,
        solver=solver.name,
        options=solver.options,
        settings={
            **inversion.options,
            **({SETTING: weight} if acts else {}),
            **({HOLD: hold.options} if hold.acts else {}),
            **({ADAPTERS: model.adapters} if model.adapters else {}),
        },
        model=model.name,
        fingerprint=model.fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        machine=calls.machine_now(model.device, model.engine, calls.exact_layout(), guidance.batched_cfg)
        if bits
        else {},
        guidance=guidance.options if acts else {},
    )


def need_writable(inversion: Inversion, solver: Solver) -> None:
    """Raises InputError for a method whose code could not be read again: a solver that its name does not find, or
    options that are no plain values."""
    found = SOLVERS.get(solver.name)
    if found is not type(solver):
        other = "no solver" if found is None else "another one"
        raise InputError(
            f"its code would name the solver {solver.name!r}, which is {other} of ddim.SOLVERS, so that it could not "
            f"come back; give it a name of its own and call ddim.SOLVERS.add({type(solver).__name__}) first.",
            parameter="method",
        )
    for key, value in {**inversion.options, **solver.options}.items():
        if not is_plain(value):
            raise InputError(
                f"its option {key} = {value!r} cannot be written into a code; use a finite number, a text, true, false "
                "or None.",
                parameter="method",
            )


def weight_of(inversion: Inversion, forward: Guidance, asked: float | None) -> float:
    """The weight of the way to noise: the method's own, what is asked for, or what suits the method.

    Raises:
        InputError: one is asked for that is no number, or the method has another of its own.
    """
    own = inversion.inversion_guidance
    if asked is not None and not is_number(asked):
        raise InputError(f"{asked!r} is not a number; 1 is the conditional model.", parameter="inversion_guidance")
    if own is not None:
        if asked not in (None, own):
            raise InputError(
                f"{asked:g} does not go with {inversion.name!r}, whose way back has weight {own:g}.",
                parameter="inversion_guidance",
            )
        return own
    return as_plain(asked) if asked is not None else (float(forward.weight) if inversion.exact else 1.0)


def solver_of(model: Model, code: LatentCode) -> Solver:
    """The solver that a code comes forward with; warns where the model is not the one that made it.

    Raises:
        InputError: a code of another shape or condition, or without all that its solver needs.
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
    hold_of(code)  # what cannot be read is told before the work
    solver = make_solver(code.solver, code.options)
    if solver.stochastic and "noise" not in code.extras:
        raise InputError(f"its solver {code.solver!r} draws noise; it cannot be replayed.", parameter="code")
    needed = solver.keys if isinstance(solver, ReversibleSolver) else ("x",)
    if missing := sorted(set(needed) - set(code.state)):
        raise InputError(
            f"it lacks {', '.join(missing)}, without which {code.solver!r} cannot come back.", parameter="code"
        )
    return solver


def prompts_asked(
    model: Model, prompt: str | Sequence[str] | None, negative: str | None, count: int
) -> tuple[str | Sequence[str] | None, str | None]:
    """Prompts, one an image, and negative as a model with text is to read them; of another, as they were given.

    Raises:
        InputError: no texts or none that can be read, another number of them, weighted words.
    """
    if not model.text:
        return prompt, negative
    several = texts_for("" if prompt is None else prompt, count, "prompt")
    plain = None if negative is None else refuse_weights(check_text(negative, "negative"), "negative")
    return [refuse_weights(text, "prompt") for text in several], plain


def hold_for(model: Model, clip_x0: float | None, threshold: float | None) -> Hold:
    """How x0 is held: as asked for, or as the model's config says where nothing is.

    Raises:
        InputError: a number out of its range, or both.
    """
    return model.schedule.hold if clip_x0 is None and threshold is None else Hold(clip_x0, threshold)


def hold_of(code: LatentCode) -> Hold:
    """How x0 was held on a code's way back, and is to be on its way forward. Raises InputError for a broken code."""
    return Hold.of(code.settings.get(HOLD))


def guidance_for(model: Model, given: float | Guidance | None, usual: float) -> Guidance:
    """Classifier-free guidance as asked for, or the usual: of a class-conditional model 1.

    Raises:
        InputError: a number out of its range, or any for a model without conditions, where it cannot act; one that its
            network is to be told, and it is told none.
    """
    if given is not None and not conditioned(model):
        towards = (
            "a class, and the model {!r} has none that stands for no class"
            if model.classes
            else ("a prompt, and the model {!r} takes none")
        )
        raise InputError(f"it leads towards {towards.format(model.name)}; leave it out.", parameter="guidance")
    own = usual if model.text else 1.0
    guidance = given if isinstance(given, Guidance) else Guidance(own if given is None else given)
    check_embedded(model, guidance)
    return guidance


def check_embedded(model: Model, guidance: Guidance) -> None:
    """Raises InputError for a number that the network is to be told, and it is told none."""
    if guidance.embedded is not None and not model.info.embedded:
        raise InputError(
            f"{guidance.embedded:g} is a number that guidance-distilled networks are told, and {model.name!r} is told "
            "none; leave it out.",
            parameter="embedded",
        )


def need_model(model: object) -> None:
    """Raises InputError for what is no model of this library."""
    if isinstance(model, Model):
        return
    what = f"the text {model!r}" if isinstance(model, str) else f"a {type(model).__name__}"
    raise InputError(
        f"{what} is not a model; give what ddim.load returns. A network of one's own becomes one by "
        "ddim.Model.from_network.",
        parameter="model",
    )


def need_text(model: Model) -> None:
    """Raises InputError for a model that takes no prompts."""
    if not model.text:
        raise InputError(
            f"{model.name!r} takes no prompts, so that words cannot edit; use a text model.", parameter="model"
        )


def need_code(code: object, parameter: str = "code") -> None:
    """Raises InputError for what is no latent code."""
    if not isinstance(code, LatentCode):
        raise InputError(
            f"a {type(code).__name__} is not a latent code; give what ddim.invert or LatentCode.load returns.",
            parameter=parameter,
        )


def state_shape(model: Model) -> tuple[int, int, int]:
    """(C, H, W) that a code of this model has; 0 stands for any side."""
    return (model.shape[0], 0, 0) if model.multiple else model.shape


def picture_shape(model: Model, code: LatentCode) -> tuple[int, int, int]:
    """(C, H, W) of the pictures that a code comes back to."""
    if not model.multiple:
        return model.picture
    height, width = code.state["x"].shape[2:]
    return model.picture[0], height * model.multiple, width * model.multiple


@contextmanager
def half_precision_hint(model: Model) -> Generator[None]:
    """Adds what would do to an error that names the step at which float16 stopped being numbers."""
    try:
        yield
    except NotFinite as error:
        if model.dtype != torch.float16:
            raise
        hint = "float16 overflows above 65504; load the model with bfloat16 or float32."
        raise NotFinite(error.message, step=error.step, hint=hint) from None


def prior(model: Model, grid: Grid, seeds: Sequence[int], shape: tuple[int, ...]) -> tuple[Tensor, SeededNoise]:
    """x_T of each seed, [N, *shape], and what draws the noise that follows."""
    noise = SeededNoise(seeds)
    x = noise(torch.empty(len(seeds), *shape, dtype=model.state_dtype, device=model.device))
    return x * model.schedule.prior_std(grid), noise


def grid_for(model: Model, steps: int, spacing: Spacing | None, size: tuple[int, int] | None = None) -> Grid:
    """The grid of a run: the model's own spacing unless another is asked for.

    Args:
        model, steps, spacing: as for the pipelines.
        size: (height, width) of what is diffused, for schedules that depend on it; the model's own by default.
    """
    return model.schedule.grid(steps, spacing, model.shape[1:] if size is None else size)


def latent_size(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of what is diffused for pictures of a size in pixels."""
    per = model.multiple or 1
    return size[0] // per, size[1] // per


def check_run(batch: int, on_event: object) -> None:
    """Raises InputError for a batch of less than one image, or a listener that cannot be called."""
    check_batch(batch)
    if not callable(on_event):
        raise InputError(
            f"a {type(on_event).__name__} cannot be called; give a function of one event, or leave it out.",
            parameter="on_event",
        )


def check_batch(batch: int) -> None:
    """Raises InputError for a batch of less than one image."""
    if not is_whole(batch) or batch < 1:
        raise InputError(f"{batch} is not a number of images; use 1 or more.", parameter="batch")


class Report:
    """Turns each batch's steps into steps done of all; what the loop calls after a step."""

    def __init__(self, on_event: OnEvent, steps: int, count: int, batch: int) -> None:
        self.on_event, self.done = on_event, 0
        self.steps, self.total = steps, steps * -(-count // batch)

    def begin(self, batch: int, steps: int) -> None:
        """A batch begins, whatever those before it reported, with some of its steps done."""
        self.done = batch * self.steps + steps

    def __call__(self, i: int, state: State) -> None:
        """After each step."""
        self.done += 1
        self.on_event(StepEvent(self.done, self.total))
