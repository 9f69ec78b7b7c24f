"""What the verbs share: grids, guided denoisers, the walk back in batches, and what they are told on the way."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError, NotFinite, is_whole
from .._utils.texts import check_text, texts_for, unweighted
from ..core.denoiser import Denoiser, held
from ..core.grid import Grid, make_grid
from ..core.guidance import Guidance, classifier_free
from ..core.noise import SeededNoise
from ..core.path import TablePath
from ..core.prediction import NO_HOLD, Hold
from ..core.solve import OnStep
from ..inversion import partial as partials
from ..inversion.base import GuidedInversion, Inversion, InversionInterrupted, InversionProblem, InversionResult
from ..inversion.latent_code import HOLD, LatentCode
from ..models.base import Model
from ..solvers import ReversibleSolver, Solver, State, make_solver
from ..solvers.base import options_of
from ..solvers.lattice import steps_of_code

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all, over every batch."""

Tell = Callable[[int, float], None]
"""Called with a step, from 0, and the loss there, while a method tunes what it keeps."""

Spacing = str | Sequence[float]

OnCodes = Callable[[int, LatentCode], None]
"""Called when a batch has been walked back, with the place of its first image and the batch's code."""

OnImages = Callable[[int, Tensor], None]
"""Called when a batch has become images, with the place of the first and [n, C, H, W] in [0, 1]."""


def walk_back(
    model: Model,
    inversion: Inversion | GuidedInversion,
    pixels: Tensor,
    grid: Grid,
    cond: Mapping[str, Any],
    batch: int,
    progress: Progress | None,
    guidance: Guidance | None = None,
    *,
    back: float | None = None,
    seed: int = 0,
    tell: Tell | None = None,
    resume: LatentCode | None = None,
    hold: Hold | None = None,
    on_batch: OnCodes | None = None,
) -> LatentCode:
    """What ``invert`` does once images, grid and condition are known."""
    forward, count, hold = guidance or Guidance(), len(pixels), hold or NO_HOLD
    weight = _weight_back(inversion, forward, back)
    empty = empty_code(model, inversion, grid, forward, back, hold)
    parts, begun = list[InversionResult](), None
    if resume is not None:
        partials.check(resume, partials.compared(empty), count)
        batch = int(resume.settings[partials.KEY]["batch"])
        parts, begun = partials.unpacked(resume, model.device)
    if parts and on_batch is not None:
        on_batch(0, partials.whole(empty, parts))
    report = Report(progress, steps_of_code(inversion.solver(), grid), count, batch)
    for begin in range(sum(len(p.state["x"]) for p in parts), count, batch):
        part = pixels[begin : begin + batch]
        scene = InversionProblem(
            model.denoiser(),
            part_of(cond, begin, len(part)),
            forward,
            weight,
            model.prediction,
            model.path.t_max,
            SeededNoise([seed + k for k in range(begin, begin + len(part))]),
            tell,
            begun,
            hold,
        )
        steps = int(resume.settings[partials.KEY]["steps"]) if resume and begun is not None else 0
        report.begin(begin // batch, steps)
        try:
            with half_precision_hint(model):
                x0 = model.encode(part)
                if begun is not None:
                    partials.check_images(begun, x0)
                parts.append(_walk(inversion, scene, x0, grid, report))
            begun = None
            if on_batch is not None:
                on_batch(begin, partials.whole(empty, parts[-1:]))
        except KeyboardInterrupt as error:
            stop = error
            if resume is not None and begun is not None and not isinstance(error, InversionInterrupted):
                stop = partials.as_held(resume, begun)  # before the method had it in hand
            if not parts and not isinstance(stop, InversionInterrupted):
                raise
            done = sum(len(p.state["x"]) for p in parts)
            raise partials.interrupted(empty, parts, stop, scene.cond, (count, done, batch)) from None
    return partials.whole(empty, parts)


def empty_code(
    model: Model,
    inversion: Inversion | GuidedInversion,
    grid: Grid,
    guidance: Guidance,
    back: float | None = None,
    hold: Hold = NO_HOLD,
) -> LatentCode:
    """What is known of a code before the walk back: all but tensors and prompts; as for ``walk_back``.

    Raises:
        InputError: a weight of the way back, or a grid, that the method does not take.
    """
    weight, solver = _weight_back(inversion, guidance, back), inversion.solver()
    rest = getattr(inversion, "rest", None)  # of a method that walks only a part of the grid
    return LatentCode(
        state={},
        grid=grid if rest is None else rest(grid),
        method=inversion.name,
        solver=solver.name,
        options=options_of(solver),
        settings={
            **inversion.options,
            **({"back": weight} if model.text else {}),
            **({HOLD: hold.options} if hold.acts else {}),
        },
        model=model.name,
        fingerprint=model.fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        guidance=guidance.options if model.text else {},
    )


def _weight_back(inversion: Inversion | GuidedInversion, forward: Guidance, back: float | None) -> float:
    own = inversion.back if isinstance(inversion, GuidedInversion) else None
    if own is not None:
        if back not in (None, own):
            raise InputError(
                f"{back:g} does not go with {inversion.name!r}, whose way back has weight {own:g}.", parameter="back"
            )
        return own
    return back if back is not None else (forward.weight if inversion.exact else 1.0)


def _walk(
    inversion: Inversion | GuidedInversion, scene: InversionProblem, x0: Tensor, grid: Grid, report: OnStep | None
) -> InversionResult:
    if isinstance(inversion, GuidedInversion):
        return inversion.walk(scene, x0, grid, report)
    state = inversion.invert(scene.guided(scene.back), x0, grid, report)
    return InversionResult(state, grid, scene.cond, {})


def way_forward(model: Model, code: LatentCode) -> Solver:
    """The solver that a code comes forward with; warns where the model is not the one that made it.

    Raises:
        InputError: a code of another shape or condition, or without all that its solver needs.
    """
    takes = {k: v.shape[1:] for k, v in model.condition(0 if model.classes else None, 1).items()}
    code.check(model.name, model.fingerprint, state_shape(model), str(model.dtype).removeprefix("torch."), takes)
    labels = code.cond.get("labels")
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


def asked_of(
    model: Model, prompt: str | Sequence[str] | None, negative: str, count: int
) -> tuple[str | Sequence[str] | None, str]:
    """Prompts, one an image, and negative as a model with text is to read them; of another, as they were given.

    Raises:
        InputError: no texts or none that can be read, another number of them, weighted words.
    """
    if not model.text:
        return prompt, negative
    several = texts_for("" if prompt is None else prompt, count, "prompt")
    plain = unweighted(check_text(negative, "negative"), "negative")
    return [unweighted(text, "prompt") for text in several], plain


def guided_by(model: Model, guidance: Guidance, hold: Hold | None = None) -> Denoiser:
    """The model's denoiser, under classifier-free guidance where it has text, and x0 held: by default as the model's
    config says."""
    denoise = model.denoiser()
    if model.text:
        denoise = classifier_free(denoise, guidance, model.prediction, model.path.t_max)
    return held(denoise, model.hold if hold is None else hold)


def hold_for(model: Model, clip_x0: float | None, threshold: float | None) -> Hold:
    """How x0 is held: as asked for, or as the model's config says where nothing is.

    Raises:
        InputError: a number out of its range, or both.
    """
    return model.hold if clip_x0 is None and threshold is None else Hold(clip_x0, threshold)


def hold_of(code: LatentCode) -> Hold:
    """How x0 was held on a code's way back, and is to be on its way forward. Raises InputError for a broken code."""
    return Hold.of(code.settings.get(HOLD))


def guidance_for(model: Model, given: float | Guidance | None, usual: float) -> Guidance:
    """Classifier-free guidance as asked for, or the usual.

    Raises:
        InputError: a number out of its range, or any for a model without text, where it cannot act.
    """
    if given is not None and not model.text:
        raise InputError(
            f"it leads towards a prompt, and the model {model.name!r} takes none; leave it out.", parameter="guidance"
        )
    return given if isinstance(given, Guidance) else Guidance(usual if given is None else given)


def need_model(model: object) -> None:
    """Raises InputError for what is no model of this library."""
    if all(hasattr(model, part) for part in ("denoiser", "condition", "path", "encode", "decode")):
        return
    what = f"the text {model!r}" if isinstance(model, str) else f"a {type(model).__name__}"
    raise InputError(
        f"{what} is not a model; give what ddim.load returns. A network or denoiser of one's own goes through "
        "ddim.from_network, ddim.solve and ddim.solve_back.",
        parameter="model",
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
    return model.picture[0], code.x.shape[2] * model.multiple, code.x.shape[3] * model.multiple


@contextmanager
def half_precision_hint(model: Model) -> Iterator[None]:
    """Adds what would do to an error that names the step at which float16 stopped being numbers."""
    try:
        yield
    except NotFinite as error:
        if model.dtype != torch.float16:
            raise
        hint = "float16 overflows above 65504; load the model with bfloat16 or float32."
        raise NotFinite(error.message, step=error.step, hint=hint) from None


def start(model: Model, grid: Grid, seeds: Sequence[int], shape: tuple[int, ...]) -> tuple[Tensor, SeededNoise]:
    """x_T of each seed, [N, *shape], and what draws the noise that follows."""
    noise = SeededNoise(seeds)
    x = noise(torch.empty(len(seeds), *shape, dtype=model.state_dtype, device=model.device))
    # On VP, x has unit variance at every node; elsewhere what little signal is left is no part of the prior.
    return x * (1.0 if isinstance(model.path, TablePath) else grid[0].sigma), noise


def grid_for(model: Model, steps: int, spacing: Spacing | None) -> Grid:
    """The grid that the verbs walk: the model's own spacing unless another is asked for."""
    spacing = model.spacing if spacing is None else spacing
    return make_grid(model.path, steps, spacing, offset=model.offset if spacing == "leading" else 0)


def check_batch(batch: int) -> None:
    """Raises InputError for a batch of less than one image."""
    if not is_whole(batch) or batch < 1:
        raise InputError(f"{batch} is not a number of images; use 1 or more.", parameter="batch")


def part_of(cond: Mapping[str, Any], begin: int, count: int) -> dict[str, Any]:
    """The condition of ``count`` samples from ``begin`` on."""
    return {k: v[begin : begin + count] for k, v in cond.items()}


class Report:
    """Turns each batch's steps into steps done of all."""

    def __init__(self, progress: Progress | None, steps: int, count: int, batch: int) -> None:
        self.progress, self.done = progress, 0
        self.steps, self.total = steps, steps * -(-count // batch)

    def begin(self, batch: int, steps: int) -> None:
        """A batch begins, whatever those before it reported, with some of its steps done."""
        self.done = batch * self.steps + steps

    def __call__(self, i: int, state: State) -> None:
        """After each step."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
