"""The pipeline ``invert``: from real images to their latent codes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._utils.errors import InputError, Interrupted
from ..core.contracts import Inversion
from ..core.guidance import Guidance
from ..core.noise import checked_seed
from ..data.images import ImageLike, read_images
from ..inversion import make_inversion
from ..inversion import partial as partials
from ..inversion.latent_code import LatentCode
from ..models.base import Model
from .common import (
    Spacing,
    check_run,
    conditioned,
    grid_for,
    guidance_for,
    hold_for,
    invert_batches,
    latent_size,
    need_model,
    prompts_asked,
)
from .events import CodeEvent, Event, OnEvent, silent


def invert(
    model: Model,
    images: ImageLike,
    *,
    steps: int = 50,
    method: str | Inversion = "ddim",
    spacing: Spacing | None = None,
    options: Mapping[str, Any] | None = None,
    labels: int | Sequence[int] | None = None,
    prompt: str | Sequence[str] | None = None,
    negative: str | None = None,
    guidance: float | Guidance | None = None,
    clip_x0: float | None = None,
    threshold: float | None = None,
    inversion_guidance: float | None = None,
    seed: int = 0,
    resize: bool = False,
    batch: int = 64,
    resume: LatentCode | None = None,
    on_event: OnEvent = silent,
) -> LatentCode:
    """Takes real images to their latent codes.

    Args:
        model: from ``ddim.load``.
        images: a path, a PIL image, a tensor [C, H, W] or [N, C, H, W] in [0, 1], or a list of these.
        steps: S, 1 to ``model.schedule.path.levels``.
        method: one of ``ddim.inversion_names()``, or an inversion such as ``ddim.BDIA()``; ``edict``, ``bdia`` and
            ``belm`` come back exactly.
        spacing: a key of ``ddim.SPACINGS``, or a list of t; the model's own by default.
        options: of a method that is named, such as ``{"iterations": 5}``.
        labels: class labels, one an image or one for all.
        prompt: what the images show, for a text-to-image model: one for all, or one an image; as in ``sample``.
        negative: the prompt that guidance leads away from, as ``prompt``.
        guidance: w of the way forward, for a model with text or classes, kept in the code; 1 by default.
        clip_x0, threshold: as for ``sample``, on the way back and, kept in the code, forward. A network that needs its
            x0 held to make pictures needs it here too.
        inversion_guidance: w of the way to noise, where the method leaves it free: by default as ``guidance`` for
            reversible solvers, which come back exactly only then, and 1 for the others, whose error grows with it.
            ``null-text``, ``negative-prompt`` and ``direct`` have 1 as their own.
        seed: for methods that draw noise: the k-th image has the seed ``seed + k``.
        resize: fit images of another size or number of channels.
        batch: images a network call.
        resume: the ``partial`` of an ``Interrupted``, to go on with in its batches; all else as it was. The code is
            the one that an uninterrupted run gives, bit for bit.
        on_event: called with a ``StepEvent`` after each step, a ``LossEvent`` while a method tunes, and a
            ``CodeEvent`` when a batch is done, to keep what there is; of a resumed run also with what was done before.

    Returns:
        The code: the solver's whole state, the grid and the settings.

    Raises:
        InputError: images that do not fit, a value out of range or unknown, or one that could not act.
        DDIMError: the network returned NaN, or the solver diverged; the step is named.
        Interrupted: Ctrl-C once a batch is done, or in ``null-text``, with what there is; a ``KeyboardInterrupt`` to
            whom does not ask.
    """
    need_model(model)
    check_run(batch, on_event)
    inversion = make_inversion(method, options)
    forward, hold = guidance_for(model, guidance, 1.0), hold_for(model, clip_x0, threshold)
    if inversion_guidance is not None and not conditioned(model):
        raise InputError(
            f"it is a weight of guidance, and the model {model.name!r} takes nothing to lead towards; leave it out.",
            parameter="inversion_guidance",
        )
    pixels = read_images(images, model.picture, resize=resize, multiple=model.multiple)
    checked_seed(seed, len(pixels))
    size = (pixels.shape[2], pixels.shape[3])
    grid = grid_for(model, steps, spacing, latent_size(model, size))
    prompt, negative = prompts_asked(model, prompt, negative, len(pixels))
    conditions = model.condition(labels, len(pixels), prompt, negative, size)
    prompts = tuple(prompt or ()) if model.text else ()
    if resume is not None:
        partials.check(resume, {"prompts": prompts[: len(resume)], "negative": negative}, len(pixels))

    def told(event: Event) -> None:
        if isinstance(event, CodeEvent):
            first, part = event.first, event.code
            part = replace(part, prompts=prompts[first : first + len(part)], negative=negative)
            event = CodeEvent(first, part)
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
            on_event=told,
        )
    except Interrupted as stop:
        begun = stop.partial
        stop.partial = replace(begun, prompts=prompts[: len(begun)], negative=negative)
        raise
    return replace(code, prompts=prompts, negative=negative)
