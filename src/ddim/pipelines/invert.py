"""The pipeline ``invert``, which takes real images to latent codes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._utils.errors import InputError, Interrupted, is_number
from ..core.contracts import Inversion
from ..core.guidance import Guidance, with_embedded
from ..core.noise import checked_seed
from ..data.images import ImageLike
from ..data.photographs import CropLike
from ..editing.editors import EDITORS
from ..editing.strength import checked_strength, needed
from ..inversion import INVERSIONS, make_inversion
from ..inversion import partial as partials
from ..inversion.base import has_trajectory
from ..inversion.latent_code import LEFT_OUT, STRENGTH, LatentCode
from ..models.base import Model
from .batches import invert_batches
from .capabilities import check_inversion, check_negative, check_pull, check_weight
from .common import (
    Spacing,
    check_run,
    conditioned,
    grid_for,
    guidance_for,
    hold_for,
    in_model_threads,
    latent_size,
    need_model,
    read_prompts,
    say_assumed,
    translated,
)
from .events import CodeEvent, Event, OnEvent, silent
from .pictures import Pictures, read_pictures

EMBEDDED_IN_INVERSION = 1.0
"""The default of ``Guidance.embedded`` during the inversion of an image by a guidance-distilled network."""


@in_model_threads
def invert(
    model: Model,
    images: ImageLike | Pictures,
    *,
    steps: int | None = None,
    method: str | Inversion = "ddim",
    spacing: Spacing | None = None,
    options: Mapping[str, Any] | None = None,
    labels: int | Sequence[int] | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str | None = None,
    guidance: float | Guidance | None = None,
    guidance_scale: float | None = None,
    clip_x0: float | None = None,
    threshold: float | None = None,
    inversion_guidance: float | None = None,
    strength: float | None = None,
    keep_trajectory: bool = False,
    seed: int = 0,
    crop: CropLike | None = None,
    resize: bool = False,
    keep_source: bool = False,
    batch: int = 64,
    resume: LatentCode | None = None,
    on_event: OnEvent = silent,
) -> LatentCode:
    """Inverts real images to a latent code, from which ``reconstruct`` and ``edit`` sample.

    Args:
        model: from ``ddim.load``.
        images: a path, a PIL image, a tensor [C, H, W] or [N, C, H, W] in [0, 1], or a list of these. ``Pictures`` are
            read already, and go with neither ``crop`` nor ``resize``.
        steps: the number of steps S, from 1 to ``model.schedule.path.levels``; by default the usual number of the model
            (``ModelInfo.steps``).
        method: one of ``ddim.inversion_names()``, or an inversion such as ``ddim.BDIA()``. The round trip of ``edict``,
            ``bdia``, ``belm``, ``rex`` and ``reversible-heun`` is exact.
        spacing: a key of ``ddim.SPACINGS``, or a list of t; by default that of the model.
        options: the options of a method that is chosen by name, such as ``{"iterations": 5}``.
        labels: the class labels of the images: one for each image, or one for all.
        prompt: a description of the images, for a text-to-image model: one for all, or one for each; see ``sample``.
        negative: the negative prompt, which guidance leads away from; one for all images.
        guidance: the weight w of guidance when sampling from the code, for a model with text or classes; 1 by default.
            It is stored in the code. ``Guidance.embedded``, the scale that a guidance-distilled network takes as an
            input, is used during the inversion too, since one scale must serve both ways; it is 1 by default, as in
            the published inversions of FLUX (RF-Solver, FireFlow, Uni-Inv).
        guidance_scale: the number that the model's own pipeline in diffusers takes, in place of ``guidance``; see
            ``Model.guidance_of``.
        clip_x0, threshold: the limit of x0, as for ``sample``. It applies during the inversion and, stored in the code,
            when sampling. A network that needs such a limit to sample images needs it here too.
        inversion_guidance: the weight w of guidance during the inversion, if the method does not fix it. By default it
            equals ``guidance`` for exact methods, which reconstruct exactly only then, and 1 for the others, whose
            error grows with it. ``null-text``, ``negative-prompt``, ``prox-npi``, ``spd``, ``direct`` and
            ``direct-edit`` fix it to 1.
        strength: in [0, 1]: invert only the last ``strength * S`` steps, rounded up to at least one, so that the code
            is less noisy than x_T and edits of it stay closer to the image. By default all steps, or for
            ``edit-friendly`` those that its option ``skip`` leaves, which a strength replaces. The code stores it, and
            an edit of the code has it by default.
        keep_trajectory: store the samples at all nodes in the code, from which some editors start; see ``edit``. Only
            methods that step from the image to noise have them; ``direct`` and ``direct-edit`` always store them.
        seed: the seed of the first image, for methods that draw noise. Image k has the seed ``seed + k``.
        crop: the region of a photograph that is inverted: ``(left, top, right, bottom)`` in its pixels, ``"whole"``, or
            a list with one of these for each photograph. It is scaled to the size of the model; for a model of any size
            it keeps its aspect ratio. By default an image must have a size that the model takes; with ``keep_source``,
            the largest region at the centre is taken of an image of another size, or with far more pixels than the
            model's images.
        resize: fits images of another size or number of channels to the model: crops them around their centre and
            scales them. Not with ``crop``.
        keep_source: stores the photographs in the code at their own size, without loss, so that ``edit`` can paste its
            edits into them. ``Pictures`` must hold photographs for it.
        batch: the number of images per network call.
        resume: the ``partial`` code of an ``Interrupted``, to continue from, with the same images and arguments. It
            keeps its batch size. Images that were finished are compared only if the code keeps its sources. The result
            equals that of an uninterrupted run, bit for bit.
        on_event: called with a ``StepEvent`` after each step, a ``LossEvent`` while a method optimizes, and a
            ``CodeEvent`` after each batch. A resumed run begins with a ``CodeEvent`` of the images that were complete.

    Returns:
        the latent code: the complete state of the solver, the grid and the settings.

    Raises:
        InputError: images do not fit, or a value is out of range, unknown, or would have no effect.
        NotFinite: the sample contains NaN or infinity after a step.
        Interrupted: Ctrl-C after a batch is complete, or during ``null-text`` or ``spd``, with a partial code. Earlier
            it is a plain ``KeyboardInterrupt``. An ``Interrupted`` is a ``KeyboardInterrupt`` too.
    """
    need_model(model)
    check_run(batch, on_event)
    guidance = translated(model, guidance, guidance_scale)
    if isinstance(method, str) and method in EDITORS and method not in INVERSIONS:
        raise InputError(f"{method!r} edits images without a code of its own; use it in edit.", parameter="method")
    inversion, strength = make_inversion(method, options), checked_strength(strength)
    check_inversion(model, inversion)
    if keep_trajectory and not has_trajectory(inversion):
        raise InputError(
            f"{inversion.name!r} does not step from the image to noise, so that it has no trajectory to store; leave "
            "it out, or use 'ddim'.",
            parameter="keep_trajectory",
        )
    if strength is not None:
        inversion = inversion.whole()
    forward, hold = guidance_for(model, guidance, 1.0), hold_for(model, clip_x0, threshold)
    inversion.check_guidance(forward)
    check_pull(forward, inversion.stores)
    if inversion_guidance is not None and not conditioned(model):
        raise InputError(
            f"it is a weight of guidance, and the model {model.name!r} has nothing to lead towards; leave it out.",
            parameter="inversion_guidance",
        )
    if inversion_guidance is not None and is_number(inversion_guidance):
        check_weight(model, inversion_guidance, "inversion_guidance")
    check_negative(model, negative)
    if keep_source and isinstance(images, Pictures) and not images.photographs:
        raise InputError(
            "these Pictures hold no photographs, so there are none to keep; read them with keep=True, or leave it out.",
            parameter="keep_source",
        )
    pictures = read_pictures(model, images, crop=crop, resize=resize, keep=keep_source)
    pixels, sources = pictures.pixels, pictures.photographs if keep_source else ()
    checked_seed(seed, len(pixels))
    size = (pixels.shape[2], pixels.shape[3])
    say_assumed(model, steps)
    grid = grid_for(model, steps, spacing, latent_size(model, size))
    grid, left_out = needed(strength, grid)
    record: dict[str, Any] = {} if strength is None else {STRENGTH: strength, LEFT_OUT: left_out}
    forward = forward.on(inversion.part(grid))
    prompt, negative = read_prompts(model, prompt, negative, len(pixels))
    conditions = model.condition(labels, len(pixels), prompt, negative, size)
    usual = None if model.info.embedded is None else EMBEDDED_IN_INVERSION
    conditions = with_embedded(conditions, usual if forward.embedded is None else forward.embedded)
    prompts = tuple(prompt or ()) if model.text else ()
    if resume is not None:
        crops = tuple(source.crop for source in sources[: len(resume)])
        wanted = {"prompts": prompts[: len(resume)], "negative": negative, "crops": crops}
        partials.check(resume, wanted, len(pixels))
        partials.check_sources(resume, sources)

    def with_rows(event: Event) -> None:
        if isinstance(event, CodeEvent):
            first, part = event.first, event.code
            rows = slice(first, first + len(part))
            part = replace(part, prompts=prompts[rows], negative=negative, sources=sources[rows])
            event = CodeEvent(first, part, event.batch)
        on_event(event)

    try:
        code = invert_batches(
            model,
            inversion,
            pixels,
            grid,
            conditions,
            batch,
            forward,
            inversion_guidance=inversion_guidance,
            seed=seed,
            resume=resume,
            hold=hold,
            keep_trajectory=keep_trajectory,
            record=record,
            on_event=with_rows,
        )
    except Interrupted as stop:
        partial = stop.partial
        rows = slice(len(partial))
        stop.partial = replace(partial, prompts=prompts[rows], negative=negative, sources=sources[rows])
        raise
    return replace(code, prompts=prompts, negative=negative, sources=sources)
