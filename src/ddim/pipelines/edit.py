"""The pipeline ``edit``: changes real images, or their codes, by prompts or by classes."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .._utils.errors import DDIMWarning, InputError, is_number
from ..core.conditioning import POOLED, TEXT, TEXT_MASK, Conditioning, PromptConditioning
from ..core.contracts import Inversion
from ..core.grid import Grid
from ..core.guidance import Guidance, with_embedded
from ..data.images import ImageLike
from ..data.photographs import CropLike
from ..editing.auto_mask import AutoMask
from ..editing.blend import MaskLike, read_masks, to_latent
from ..editing.composite import checked_feather
from ..editing.editors.base import Concept
from ..editing.plan import AttentionEdit
from ..editing.prompts import Weights, target_prompts
from ..editing.strength import WHOLE, Reach, checked_strengths
from ..inversion import make_inversion
from ..inversion.base import has_trajectory
from ..inversion.extras import pinned
from ..inversion.latent_code import LEFT_OUT, STRENGTH, LatentCode
from ..models.base import Model
from ..solvers import make_solver
from ..solvers.lattice import ReversibleSolver
from .auto_masks import automatic_masks, warn_of_empty
from .beside import sampled
from .capabilities import check_acts, check_guidance, check_inversion, check_negative, check_weight
from .common import (
    Spacing,
    check_made_for,
    check_run,
    conditioned,
    grid_for,
    in_model_threads,
    latent_size,
    need_model,
    picture_shape,
    say_assumed,
    solver_of,
    translated,
)
from .edit_by import Chosen, Parts, edited_by
from .edit_plan import (
    Blend,
    attention_asked,
    by_class,
    planned,
    planned_classes,
    prompts_of_code,
    refuse_words,
    source_prompts,
)
from .events import OnEvent, silent
from .film import gathered, of_strengths
from .invert import invert
from .pasting import composites_of, needs_photographs
from .phases import Phases
from .pictures import Pictures, model_mask, read_pictures
from .reconstruct import pinned_code

DEFAULTS: dict[str, Any] = {"method": "direct", "seed": 0}
"""Settings of the inversion of images. They are None in the signature, because a code takes none of them."""


@dataclass(frozen=True, eq=False)
class Edited:
    """The result of ``edit`` for N images with K targets each.

    With a list of M strengths each target is edited M times, and K below stands for K M: entry k M + m is the edit to
    target k at strength m.

    Attributes:
        source: the images, [N, C, H, W] in [0, 1]; None where ``edit`` was called with a code.
        reconstruction: the images sampled under their own prompts or classes, beside the targets, [N, C, H, W] in
            [0, 1].
        edits: the images sampled under the targets, [N, K, C, H, W] in [0, 1].
        prompts: the targets without their weights, ``[N][K]``; for a model without text, the classes.
        code: the code of the sources.
        blend_mask: where an edit could differ from its source at the last step, [N, K, H, W] in [0, 1], enlarged from
            the latent's resolution; None without a mask and blending.
        composites: for each image and target the whole photograph with the edit pasted in, uint8 [C, h, w] with the
            channels of the photograph, ``[N][K]``; for ``save_image``. Every byte outside of the mask is the
            photograph's. None where the photographs are not known: ``edit`` was called with images that it took whole,
            without mask, blend and crop, or with ``Pictures`` or a code that keep no photographs. ``reconstruction``
            and ``edits`` are always decoded from the latents, and no byte of them is pasted.
        strengths: the M strengths; None is that of the whole code, such as one with the option ``skip``.
    """

    source: Tensor | None
    reconstruction: Tensor
    edits: Tensor
    prompts: tuple[tuple[str | int, ...], ...]
    code: LatentCode
    blend_mask: Tensor | None = None
    composites: tuple[tuple[Tensor, ...], ...] | None = None
    strengths: tuple[float | None, ...] = (None,)


@in_model_threads
def edit(
    model: Model,
    source: ImageLike | Pictures | LatentCode,
    prompt: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    source_prompt: str | Sequence[str] | None = None,
    labels: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    source_labels: int | Sequence[int] | None = None,
    method: str | Inversion | None = None,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    guidance_scale: float | None = None,
    attention: str | AttentionEdit | None = None,
    blend: Blend | list[Any] = None,
    weights: Weights | list[Any] | None = None,
    mask: MaskLike | None = None,
    auto_mask: str | AutoMask | None = None,
    crop: CropLike | None = None,
    feather: int | None = None,
    negative: str | None = None,
    options: Mapping[str, Any] | None = None,
    clip_x0: float | None = None,
    threshold: float | None = None,
    inversion_guidance: float | None = None,
    strength: float | Sequence[float] | None = None,
    seed: int | None = None,
    spacing: Spacing | None = None,
    resize: bool = False,
    batch: int = 64,
    batched_cfg: bool = True,
    on_code: Callable[[LatentCode], None] | None = None,
    on_event: OnEvent = silent,
) -> Edited:
    """Edits real images by prompts (prompt-to-prompt, Hertz et al. 2022, arXiv 2208.01626) or by classes.

    Images are inverted first. Then each source is sampled under its own prompt, together with its targets, whose
    attention follows the source's. A class-conditional model samples the source's class and the targets' classes.

    The source of an exact code (``bdia``, ``belm``, ``edict``, ``rex``, ``reversible-heun``) is replayed first with
    the guidance of the code, and comes back to the bit if the code was inverted with it. Its targets are sampled by
    DDIM, from the code's sample beside that trajectory, as those of ``direct`` are: the solver's own steps carry a
    second entry of the source's state along, and hardly follow another prompt.

    Methods in ``ddim.EDITORS``, such as ``flow-edit``, make their own steps from the source to its targets, most of
    them without an inversion. They take masks, but no attention control, blend words or weighted words.

    Args:
        model: from ``ddim.load``: a text-to-image model, or a class-conditional one.
        source: images, as ``invert`` takes them, or a code. ``Pictures`` are read already, and go with none of
            ``mask``, ``crop`` and ``resize``.
        prompt: what the images are to show: one target, a list of targets, or such a list for each image.
            ``(word:2.0)`` gives a word more weight.
        source_prompt: what the images show: one prompt for all, or one for each. A code knows its own, and some editors
            need none (``Editor.needs``).
        labels: for a class-conditional model, in place of ``prompt``: one class, a list of classes, or such a list for
            each image.
        source_labels: the images' own classes: one for all, or one for each. A code knows its own.
        method: an inversion, as in ``invert``, or an editor, a key of ``ddim.EDITORS``; by default ``"direct"``. For a
            code it can only be an editor, one that starts from such a code.
        steps, options, inversion_guidance, seed, spacing: settings of the inversion, as in ``invert``, and ``options``
            of an editor; by default the usual steps of the model or the editor, and seed 0. Exact methods invert at
            the guidance 1 too, unless ``inversion_guidance`` says otherwise: a code of guided steps is far from noise.
            Not for a code, which is inverted already; but the seed is also that of ``auto_mask``.
        strength: in [0, 1]: how far the edit may go from the source. The targets leave their source in the last
            ``strength * S`` steps; a fraction of a step counts in part, so that the edit changes continuously with it.
            0 is the source. By default the code's own strength if it has one, otherwise 1, or what the editor's paper
            uses (``Editor.usual``). For a code that was inverted at a strength it counts all steps, as for images.
            A list of strengths makes a film: the images are inverted once, for the largest strength, and each target
            is edited at every strength (see ``Edited``). ``even_strengths(9)`` is a list of nine from 0 to 1.
        clip_x0, threshold: as in ``invert``, for the inversion and for sampling. Not for a code, which keeps them.
        guidance: w of sampling. By default a code's own; for images the model's usual one (``ModelInfo.guidance``: 7.5
            for Stable Diffusion unless its folder names another, 5 for SDXL, 1 for FLUX), or 1 where classes edit, and
            for an editor what its paper uses.
            ``Guidance.embedded``, the scale that a guidance-distilled network takes as an input, is that of the
            targets; by default the model's usual one (``ModelInfo.embedded``), or the one that was given when the code
            was made. Sources are inverted and sampled with the scale that their code stores, which for images is 1.
            The source of an exact code, and of ``direct``, ``direct-edit`` and ``edit-friendly``, comes back at any
            guidance.
        guidance_scale: the number that the model's own pipeline in diffusers takes, in place of ``guidance``; see
            ``Model.guidance_of``.
        attention: ``"refine"`` (the default) or ``"replace"`` (prompt-to-prompt), ``"masactrl"``,
            ``"plug-and-play"``, ``"kv-edit"`` (which needs a mask), ``"none"``, or an ``AttentionEdit`` with settings.
        blend: ``"cat/tiger"`` or ``("cat", "tiger")``: change the image only where these words of the source or of the
            target lie. ``"auto"``: those that differ between the prompts. A list has one entry for each target (or one
            such list for each image); None blends nothing.
        weights: word -> factor on its attention, like ``(word:2.0)``; lists as for ``blend``.
        mask: where it is 1 or white the image may change; where it is 0, black or transparent the source stays; see
            ``MaskLike``. It has the size of the photograph, of its crop or of the model's image. With ``blend``, the
            image changes only where both allow it.
        auto_mask: ``"difference"``, or an ``AutoMask`` with settings: let each target change the image only where the
            model's predictions under the source's and the target's condition differ (DiffEdit). With ``mask`` or
            ``blend``, the image changes only where all of them allow it.
        crop: the region of a photograph that is edited, as for ``invert``. By default, with a mask or ``blend``, an
            image that the model takes is whole; of another one it is a region around a mask of the photograph's size,
            otherwise the largest one at the centre. Not for a code, which has its own.
        feather: the width in pixels of the soft edge of ``Edited.composites``, on the inside of what may change; 0 for
            a hard edge. By default one pixel of the latent, but at most an eighth of the shorter side of what may
            change.
        negative: for images, the prompt that guidance leads away from. A code has its own.
        resize: resize images of another size; not for a code.
        batch: sources and targets in one network call; at least one image with all its targets.
        batched_cfg: during sampling, ask for both branches of guidance in one batch; False asks one after the other,
            with half the memory. A ``Guidance`` with ``batched_cfg=False`` does so during the inversion too. The
            replay of an exact code ignores ``batch`` and ``batched_cfg``, as ``reconstruct`` does.
        on_code: called once with the sources' code, before sampling begins: to save what took time to invert. The
            guidance of an exact code is that of its inversion; to go on from it, pass ``guidance`` again.
        on_event: called with a ``StepEvent`` after each step, counted over inversion and sampling together; with a
            ``LossEvent`` while a method optimizes an embedding; and with an ``ImagesEvent`` when a batch is done, whose
            images are [n, 1 + K, C, H, W].

    Returns:
        The sources, their reconstructions and the edits; and with a mask, a blend, a crop, or a code that keeps its
        source, the edits pasted into the photographs.

    Raises:
        InputError: a model without text or classes, no source prompt or class, a word that is not in its prompt,
            unequal numbers of words for ``"replace"``, a mask of another size, masks that are empty on every image,
            a strength that a code does not reach, settings of the inversion for a code, a setting that would do
            nothing; and what ``invert`` and ``reconstruct`` raise.
        DDIMError: the network returned NaN, or its attention layers are of an unknown kind.

    Warns:
        DDIMWarning: the mask of some images is empty, or the automatic mask of a target is; they do not change.
    """
    need_model(model)
    check_run(batch, on_event)
    if isinstance(source, LatentCode):
        check_made_for(model, source)
    guidance = translated(model, guidance, guidance_scale)
    if feather is not None:
        feather = checked_feather(feather)
    classes = by_class(model, prompt, labels)
    if source_labels is not None and not classes:
        raise InputError("they go with labels, and here a prompt edits; leave them out.", parameter="source_labels")
    chosen = Chosen.of(model, method, options, guidance, source if isinstance(source, LatentCode) else None)
    if chosen is not None:
        chosen.check_negative(model, None if isinstance(source, LatentCode) else negative)
    elif isinstance(guidance, Guidance):
        check_guidance(model, guidance)
        if inversion_guidance in (None, 1):
            check_acts(guidance, Guidance.of(source.guidance) if isinstance(source, LatentCode) else None)
    elif guidance is not None and is_number(guidance) and model.text:
        check_weight(model, guidance, "guidance")
    if chosen is None and not isinstance(source, LatentCode):
        check_negative(model, negative, _weight_of(model, guidance))
    strengths, auto = checked_strengths(strength), AutoMask.of(auto_mask)
    editor = None if chosen is None else chosen.editor
    if editor is not None and not editor.needs and not classes and not isinstance(source, LatentCode):
        source_prompt = "" if source_prompt is None else source_prompt
    how, reaches, farthest = attention_asked(attention, classes, editor), list[Reach](), None
    inversion_method = DEFAULTS["method"] if method is None else method
    if chosen is not None:
        inversion_method, options = chosen.inversion, None
    if isinstance(source, LatentCode):
        asked = {"steps": steps, "options": options or None}
        asked |= {"method": None if editor is not None else method}
        asked |= {"clip_x0": clip_x0, "threshold": threshold}
        asked |= {"inversion_guidance": inversion_guidance, "spacing": spacing, "resize": resize or None, "crop": crop}
        asked |= {"seed": None if auto is not None or (editor is not None and editor.draws) else seed}
        _refuse_for_code(asked)
        code, pictures = source, None
        count, size, photographs = len(code), picture_shape(model, code)[1:], code.sources
        user_masks = () if mask is None else tuple(read_masks(mask, count))
        grid, solver = code.grid, solver_of(model, code)
        exact = isinstance(solver, ReversibleSolver)
    else:
        inversion = make_inversion(inversion_method, options)
        check_inversion(model, inversion)
        if isinstance(guidance, Guidance):
            guidance = inversion.sampling_guidance(guidance)
        solver = inversion.solver()
        keep = needs_photographs(blend, crop, auto)
        code, pictures = None, read_pictures(model, source, crop=crop, resize=resize, keep=keep, mask=mask)
        count, size, photographs, user_masks = len(pictures), pictures.size, pictures.photographs, pictures.masks
        say_assumed(model, steps, guidance)
        usual_steps = model.info.steps if editor is None else editor.usual_steps(model.info, steps)
        steps = usual_steps if steps is None else steps
        grid = grid_for(model, steps, spacing, latent_size(model, size))
        exact = isinstance(solver, ReversibleSolver)
        strengths = strengths if chosen is None else chosen.strengths(strengths)
        farthest = max((s for s in strengths if s is not None), default=None)
        if farthest is not None and not exact:  # an exact code needs more than one step, and is replayed whole
            left_out = Reach.of(farthest, steps).begin
            reaches = [Reach.of(s, steps).on_rest(left_out) for s in strengths if s is not None]
            grid, inversion = grid.rest(left_out), inversion.whole()
        grid = inversion.part(grid)
    if feather is not None and not photographs:
        raise InputError(
            "it is the edge of what is pasted into a photograph, and there is none; give a mask, a blend, a crop, or a "
            "code that keeps its source.",
            parameter="feather",
        )
    if inversion_guidance is not None and is_number(inversion_guidance) and model.text:
        check_weight(model, inversion_guidance, "inversion_guidance")
    if isinstance(solver, ReversibleSolver):  # DDIM samples its targets, from the node whose state the code stores
        solver.check_steps(grid)
        grid = grid.rest(solver.first(grid))
    if code is not None and chosen is not None and STRENGTH not in code.settings:
        strengths = chosen.strengths(strengths)
    strengths = tuple(code.settings.get(STRENGTH) if code and one is None else one for one in strengths)
    reaches = reaches or [_reach_of(code, one, grid) for one in strengths]
    pixel_mask = model_mask(user_masks, photographs, size) if user_masks else None
    _refuse_empty(pixel_mask)
    if classes:
        words = {"source_prompt": source_prompt, "blend": blend, "weights": weights, "negative": negative}
        own, targets = planned_classes(model, code, source_labels, labels, count, words)
        plan, parts = None, Parts.of([[(Concept(""),) for _ in row] for row in targets])
        conditions = model.condition([k for row in targets for k in row], count * len(targets[0]), size=size).cond
    else:
        own = source_prompts(source_prompt, count) if code is None else prompts_of_code(code, source_prompt, negative)
        assert prompt is not None
        concepts = None
        if editor is not None:
            concepts = [[editor.concepts(p) for p in row] for row in target_prompts(prompt, len(own))]
            refuse_words(editor, blend, weights, Parts.of(concepts).texts)
            prompt = [["; ".join(c.text for c in one) for one in row] for row in concepts]
        masked = bool(user_masks) or auto is not None
        targets, plan = planned(model, own, prompt, size, how, blend, weights, masked=masked)
        plain = [[(Concept(p),) for p in row] for row in targets]
        parts = Parts.of(plain) if concepts is None else Parts.of(concepts).plain()
        conditions = _embedded(model, [p for part in parts.texts for p in part], size)
    phases = Phases(on_event, (0 if code is not None else 1) + exact + len(reaches))
    first_seed: int = DEFAULTS["seed"] if seed is None else seed
    if code is None:
        assert pictures is not None
        if guidance is None and conditioned(model):
            guidance = 1.0 if classes else model.info.guidance
        code = invert(
            model,
            pictures,
            steps=steps,
            method=inversion_method,
            spacing=spacing,
            options=options,
            labels=own if classes else None,  # type: ignore[arg-type]
            prompt=None if classes else source_prompt,
            negative=negative,
            guidance=chosen.source if chosen else _of_sources(guidance, inversion_guidance, exact=exact),
            clip_x0=clip_x0,
            threshold=threshold,
            inversion_guidance=inversion_guidance,
            strength=None if exact else farthest,
            keep_trajectory=chosen is not None and has_trajectory(chosen.inversion),
            seed=first_seed,
            keep_source=bool(photographs),
            batch=batch,
            on_event=phases.before_sampling(),
        )
    if on_code is not None:
        on_code(code)
    made = code
    rows = sum(map(len, targets))
    each = [conditions[k * rows : (k + 1) * rows] for k in range(len(parts.factors))]
    if not classes:
        sources = [text for text, row in zip(own, targets, strict=True) for _ in row]
        sames = [[t == text for t, text in zip(part, sources, strict=True)] for part in parts.texts]
        each = [_with_own_words(part, code, same) for part, same in zip(each, sames, strict=True)]
    alone = not batched_cfg or model.low_memory
    if isinstance(solver, ReversibleSolver) and chosen is None:
        code = pinned_code(model, code, solver, batch, batched_cfg, phases.before_sampling())
        solver = make_solver(code.solver)
    forward = _forward(code, guidance).on(code.grid) if chosen is None else chosen.target
    allowed = None if pixel_mask is None else to_latent(pixel_mask, code.state["x"].shape[-2:])
    if auto is not None:
        pixels, scale = None if pictures is None else pictures.pixels, forward.embedded
        scale = model.info.embedded if scale is None else scale
        found = automatic_masks(model, auto, code, pixels, each, scale, first_seed, batch, on_event)
        allowed = found if allowed is None else found * allowed.to(found)
        warn_of_empty(allowed, targets)
    run = (allowed, batch, phases, gathered(on_event, len(reaches)))
    if chosen is not None:
        chosen = chosen.one_branch_a_call() if alone else chosen
        runs = [edited_by(model, chosen, code, each, parts.factors, reach, first_seed, *run) for reach in reaches]
    else:
        conditions = with_embedded(PromptConditioning(each[0]), forward.embedded).cond
        forward = replace(forward, embedded=None)  # each row has its own
        if alone:
            forward = replace(forward, batched_cfg=False)
        runs = [sampled(model, solver, code, conditions, forward, plan, reach, *run) for reach in reaches]
    images = of_strengths([made for made, _ in runs], sources=1)
    masks = [mask for _, mask in runs if mask is not None]
    shown = of_strengths(masks) if masks else None
    targets = tuple(tuple(one for one in row for _ in reaches) for row in targets)
    composites = None
    if photographs:
        by_words = None if auto is None and (plan is None or plan.blend is None) else shown
        composites = composites_of(images[:, 1:], photographs, user_masks, by_words, feather, model.downscaling)
    source_pixels = None if pictures is None else pictures.pixels
    return Edited(source_pixels, images[:, 0], images[:, 1:], targets, made, shown, composites, strengths)


def _reach_of(code: LatentCode | None, strength: float | None, grid: Grid) -> Reach:
    """Returns the reach of a strength on the grid of a code, or of the code that an exact method will make.

    Raises:
        InputError: the code leaves out steps that the strength needs.
    """
    own: float | None = None if code is None else code.settings.get(STRENGTH)
    left_out = 0 if code is None else int(code.settings.get(LEFT_OUT, 0))
    if strength is None:
        return WHOLE
    if own is not None and strength > own:
        raise InputError(
            f"{strength:g} goes farther than this code, whose images were inverted at {own:g}; use that or less, or "
            "give the images.",
            parameter="strength",
        )
    reach = Reach.of(strength, grid.steps + left_out)
    return reach.on_rest(left_out) if reach.begin >= left_out else Reach(0, 1.0, left_out)


def _refuse_empty(mask: Tensor | None) -> None:
    """Refuses masks that are 0 on every image, and warns if some are.

    Args:
        mask: on the images, [N, 1, H, W]; None without a mask.

    Raises:
        InputError: no image may change anywhere.

    Warns:
        DDIMWarning: some of the images may not change anywhere.
    """
    empty = [] if mask is None else [k for k in range(len(mask)) if not bool(mask[k].any())]
    if mask is not None and len(empty) == len(mask):
        raise InputError(
            "it is 0 everywhere on the image, so that nothing could change; paint what may change white.",
            parameter="mask",
        )
    if empty:
        warnings.warn(
            f"The mask of image {empty[0] + 1} is 0 everywhere, so that its edits change nothing.",
            DDIMWarning,
            stacklevel=3,
        )


def _of_sources(
    guidance: float | Guidance | None, inversion_guidance: float | None, *, exact: bool
) -> float | Guidance | None:
    """The guidance of the inversion of images: without the embedded scale, which is that of the targets.

    Args:
        guidance: of the targets; None if the model has nothing to lead towards.
        inversion_guidance: as for ``edit``.
        exact: whether the source of the code is replayed with the guidance of the inversion.
    """
    if guidance is None or not (exact or isinstance(guidance, Guidance)):
        return guidance
    whole = guidance if isinstance(guidance, Guidance) else Guidance()
    if not exact:
        return replace(whole, embedded=None)
    if inversion_guidance is None or not is_number(inversion_guidance) or inversion_guidance == 1:
        return Guidance(batched_cfg=whole.batched_cfg)
    return replace(whole, weight=inversion_guidance, embedded=None)


def _weight_of(model: Model, guidance: float | Guidance | None) -> float:
    """The weight of sampling from images."""
    weight = model.info.guidance if guidance is None else guidance
    return weight.weight if isinstance(weight, Guidance) else weight


def _refuse_for_code(asked: Mapping[str, object]) -> None:
    """Raises InputError if a setting of the inversion is given for a code; ``asked`` has None for those left out."""
    if idle := [name for name, value in asked.items() if value is not None]:
        raise InputError(
            "it is a setting of the inversion, and a code is inverted already; leave it out.", parameter=idle[0]
        )


def _embedded(model: Model, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
    """The condition of each prompt; equal prompts are encoded once."""
    texts = list(dict.fromkeys(prompts))
    return model.encode_prompt(texts, size)[[texts.index(p) for p in prompts]]


def _with_own_words(targets: Conditioning, code: LatentCode, same: Sequence[bool]) -> Conditioning:
    """Gives each target whose prompt is its source's the very embedding of the source, of which an embedding in another
    batch differs in the last bits.

    Args:
        targets: N * K rows.
        code: the sources' code.
        same: whether the prompts are equal, for each row.
    """
    if not any(same):
        return targets
    n, k = len(code), len(same) // len(code)
    sources = code.conditions.cond.tensors
    names = [name for name in (TEXT, TEXT_MASK, POOLED) if name in targets or name in sources]
    parts = (Conditioning({name: t[name] for name in names if name in t}) for t in (sources, targets.tensors))
    rows = [row // k if equal else n + row for row, equal in enumerate(same)]
    device = next(iter(targets.tensors.values())).device
    return targets.replace(**Conditioning.cat(part.to(device) for part in parts)[rows].tensors)


def _forward(code: LatentCode, guidance: float | Guidance | None) -> Guidance:
    """The guidance of sampling; warns where the code was made for another and the source is not pinned."""
    own = Guidance.of(code.guidance)
    forward = own if guidance is None else guidance if isinstance(guidance, Guidance) else own.at(guidance)
    alike = replace(forward, embedded=own.embedded).options == own.options  # sources keep their embedded scale
    if not alike and not pinned(code.extras):
        warnings.warn(
            f"The code of {code.method!r} was made for guidance {_difference(own, forward)}, not for "
            f"{_difference(forward, own)}: the reconstruction can differ from the source.",
            DDIMWarning,
            stacklevel=3,
        )
    return forward


def _difference(guidance: Guidance, other: Guidance) -> str:
    """The weight of ``guidance``, and what else of it is not the other's."""
    low, high = guidance.interval
    rescale = f", rescale {guidance.rescale:g}" if guidance.rescale != other.rescale else ""
    interval = f", interval ({low:g}, {high:g})" if tuple(guidance.interval) != tuple(other.interval) else ""
    skip = f", skip {guidance.skip.options}" if guidance.skip and guidance.skip != other.skip else ""
    proximal = f", proximal {guidance.proximal}" if guidance.proximal != other.proximal else ""
    return f"{guidance.weight:g}{rescale}{interval}{skip}{proximal}"
