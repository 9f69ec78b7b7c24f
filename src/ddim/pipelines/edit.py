"""The pipeline ``edit``: changes real images, or their codes, by prompts or by classes."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from .._utils.errors import DDIMWarning, InputError, is_number
from .._utils.tensors import in_groups
from ..core.conditioning import CONTENT, POOLED, TEXT, TEXT_MASK, Conditioning, PromptConditioning
from ..core.contracts import Inversion, OnStep, Solver
from ..core.denoiser import Call
from ..core.guidance import Guidance, with_embedded
from ..core.solve import solve
from ..data.images import ImageLike
from ..data.photographs import CropLike
from ..editing.blend import MaskLike, read_masks, to_latent
from ..editing.composite import checked_feather, enlarged, on_crop, pasted, usual_feather
from ..editing.controlled import Controlled
from ..editing.plan import AttentionEdit, AttentionPlan
from ..editing.prompts import Weights
from ..inversion import make_inversion
from ..inversion.latent_code import LatentCode
from ..inversion.photograph import Photograph
from ..inversion.replay import PinnedSolver, prompts_of, state_of, stored_noise
from ..models.base import Model
from ..solvers import REVERSIBLE, make_solver
from ..solvers.lattice import ReversibleSolver
from .capabilities import check_acts, check_guidance, check_inversion, check_negative, check_weight
from .common import (
    Report,
    Spacing,
    check_made_for,
    check_run,
    conditioned,
    grid_for,
    half_precision_hint,
    hold_of,
    in_model_threads,
    latent_size,
    need_model,
    picture_shape,
    say_assumed,
    solver_of,
    translated,
)
from .edit_plan import Blend, attention_asked, by_class, planned, planned_classes, prompts_of_code, source_prompts
from .events import EngineEvent, Event, ImagesEvent, LossEvent, OnEvent, StepEvent, engine_events, silent
from .invert import invert
from .pictures import Pictures, model_mask, read_pictures
from .reconstruct import pinned_code

DEFAULTS: dict[str, Any] = {"method": "direct", "seed": 0}
"""Settings of the inversion of images. They are None in the signature, because a code takes none of them."""


@dataclass(frozen=True, eq=False)
class Edited:
    """The result of ``edit`` for N images with K targets each.

    Attributes:
        source: the images, [N, C, H, W] in [0, 1]; None where ``edit`` was called with a code.
        reconstruction: the images sampled under their own prompts or classes, beside the targets, [N, C, H, W] in
            [0, 1].
        edits: the images sampled under the targets, [N, K, C, H, W] in [0, 1].
        prompts: the targets without their weights, ``[N][K]``; for a model without text, the classes.
        code: the code of the sources.
        blend_mask: where an edit could differ from its source at the last step, [N, K, H, W] in [0, 1], enlarged from
            the latent's resolution; None without blending.
        composites: for each image and target the whole photograph with the edit pasted in, uint8 [C, h, w] with the
            channels of the photograph, ``[N][K]``; for ``save_image``. Every byte outside of the mask is the
            photograph's. None where the photographs are not known: ``edit`` was called with images that it took whole,
            without mask, blend and crop, or with ``Pictures`` or a code that keep no photographs. ``reconstruction``
            and ``edits`` are always decoded from the latents, and no byte of them is pasted.
    """

    source: Tensor | None
    reconstruction: Tensor
    edits: Tensor
    prompts: tuple[tuple[str | int, ...], ...]
    code: LatentCode
    blend_mask: Tensor | None = None
    composites: tuple[tuple[Tensor, ...], ...] | None = None


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
    crop: CropLike | None = None,
    feather: int | None = None,
    negative: str | None = None,
    options: Mapping[str, Any] | None = None,
    clip_x0: float | None = None,
    threshold: float | None = None,
    inversion_guidance: float | None = None,
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

    Args:
        model: from ``ddim.load``: a text-to-image model, or a class-conditional one.
        source: images, as ``invert`` takes them, or a code. ``Pictures`` are read already, and go with none of
            ``mask``, ``crop`` and ``resize``.
        prompt: what the images are to show: one target, a list of targets, or such a list for each image.
            ``(word:2.0)`` gives a word more weight.
        source_prompt: what the images show: one prompt for all, or one for each. A code knows its own.
        labels: for a class-conditional model, in place of ``prompt``: one class, a list of classes, or such a list for
            each image.
        source_labels: the images' own classes: one for all, or one for each. A code knows its own.
        method, steps, options, inversion_guidance, seed, spacing: settings of the inversion, as in ``invert``; by
            default ``"direct"``, the usual steps of the model, and seed 0. Exact methods invert at the guidance 1 too,
            unless ``inversion_guidance`` says otherwise: a code of guided steps is far from noise. Not for a code,
            which is inverted already.
        clip_x0, threshold: as in ``invert``, for the inversion and for sampling. Not for a code, which keeps them.
        guidance: w of sampling. By default a code's own; for images the model's usual one (``ModelInfo.guidance``: 7.5
            for Stable Diffusion unless its folder names another, 5 for SDXL, 1 for FLUX), or 1 where classes edit.
            ``Guidance.embedded``, the scale that a guidance-distilled network takes as an input, is that of the
            targets; by default the model's usual one (``ModelInfo.embedded``), or the one that was given when the code
            was made. Sources are inverted and sampled with the scale that their code stores, which for images is 1.
            The source of an exact code, and of ``direct`` and ``edit-friendly``, comes back at any guidance.
        guidance_scale: the number that the model's own pipeline in diffusers takes, in place of ``guidance``; see
            ``Model.guidance_of``.
        attention: ``"refine"`` (the default), ``"replace"``, ``"none"``, or an ``AttentionEdit`` with windows.
        blend: ``"cat/tiger"`` or ``("cat", "tiger")``: change the image only where these words of the source or of the
            target lie. A list has one entry for each target (or one such list for each image); None blends nothing.
        weights: word -> factor on its attention, like ``(word:2.0)``; lists as for ``blend``.
        mask: where it is 1 or white the image may change; where it is 0, black or transparent the source stays; see
            ``MaskLike``. It has the size of the photograph, of its crop or of the model's image. With ``blend``, the
            image changes only where both allow it.
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
            unequal numbers of words for ``"replace"``, a mask of another size, settings of the inversion for a code, a
            setting that would do nothing; and what ``invert`` and ``reconstruct`` raise.
        DDIMError: the network returned NaN, or its attention layers are of an unknown kind.
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
    if isinstance(guidance, Guidance):
        check_guidance(model, guidance)
        if inversion_guidance in (None, 1):
            check_acts(guidance, Guidance.of(source.guidance) if isinstance(source, LatentCode) else None)
    elif guidance is not None and is_number(guidance) and model.text:
        check_weight(model, guidance, "guidance")
    if not isinstance(source, LatentCode):
        check_negative(model, negative, _weight_of(model, guidance))
    how = attention_asked(attention, classes)
    inversion_method = DEFAULTS["method"] if method is None else method
    if isinstance(source, LatentCode):
        asked = {"method": method, "steps": steps, "options": options or None}
        asked |= {"clip_x0": clip_x0, "threshold": threshold}
        asked |= {"inversion_guidance": inversion_guidance, "seed": seed, "spacing": spacing, "resize": resize or None}
        asked |= {"crop": crop}
        _refuse_for_code(asked)
        code, pictures = source, None
        count, size, photographs = len(code), picture_shape(model, code)[1:], code.sources
        user_masks = () if mask is None else tuple(read_masks(mask, count))
        grid, solver = code.grid, solver_of(model, code)
    else:
        inversion = make_inversion(inversion_method, options)
        check_inversion(model, inversion)
        solver = inversion.solver()
        keep = needs_photographs(blend, crop)
        code, pictures = None, read_pictures(model, source, crop=crop, resize=resize, keep=keep, mask=mask)
        count, size, photographs, user_masks = len(pictures), pictures.size, pictures.photographs, pictures.masks
        say_assumed(model, steps, guidance)
        steps = model.info.steps if steps is None else steps
        grid = inversion.part(grid_for(model, steps, spacing, latent_size(model, size)))
    if feather is not None and not photographs:
        raise InputError(
            "it is the edge of what is pasted into a photograph, and there is none; give a mask, a blend, a crop, or a "
            "code that keeps its source.",
            parameter="feather",
        )
    exact = isinstance(solver, ReversibleSolver)
    if inversion_guidance is not None and is_number(inversion_guidance) and model.text:
        check_weight(model, inversion_guidance, "inversion_guidance")
    if isinstance(solver, ReversibleSolver):  # DDIM samples its targets, from the node whose state the code stores
        solver.check_steps(grid)
        grid = grid.rest(solver.first(grid))
    pixel_mask = model_mask(user_masks, photographs, size) if user_masks else None
    if classes:
        words = {"source_prompt": source_prompt, "blend": blend, "weights": weights, "negative": negative}
        own, targets = planned_classes(model, code, source_labels, labels, count, words)
        plan = None
        conditions = model.condition([k for row in targets for k in row], count * len(targets[0]), size=size).cond
    else:
        own = source_prompts(source_prompt, count) if code is None else prompts_of_code(code, source_prompt, negative)
        assert prompt is not None
        targets, plan = planned(model, own, prompt, size, how, blend, weights)
        conditions = _embedded(model, [p for row in targets for p in row], size)
    phases = _Phases(on_event, (1 if code is not None else 2) + exact)
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
            guidance=_of_sources(guidance, inversion_guidance, exact=exact),
            clip_x0=clip_x0,
            threshold=threshold,
            inversion_guidance=inversion_guidance,
            seed=DEFAULTS["seed"] if seed is None else seed,
            keep_source=bool(photographs),
            batch=batch,
            on_event=phases.before_sampling(),
        )
    if on_code is not None:
        on_code(code)
    made = code
    if isinstance(solver, ReversibleSolver):
        code = pinned_code(model, code, solver, batch, batched_cfg, phases.before_sampling())
        solver = make_solver(code.solver)
    forward = _forward(code, guidance).on(code.grid)
    if not classes:
        same = [target == text for text, row in zip(own, targets, strict=True) for target in row]
        conditions = _with_own_words(conditions, code, same)
    conditions = with_embedded(PromptConditioning(conditions), forward.embedded).cond
    forward = replace(forward, embedded=None)  # each row has its own
    if not batched_cfg or model.low_memory:
        forward = replace(forward, batched_cfg=False)
    images, shown = _sampled(model, solver, code, conditions, forward, plan, pixel_mask, batch, phases, on_event)
    composites = None
    if photographs:
        by_words = None if plan is None or plan.blend is None else shown
        composites = _composites(images[:, 1:], photographs, user_masks, by_words, feather, model.downscaling)
    source_pixels = None if pictures is None else pictures.pixels
    return Edited(source_pixels, images[:, 0], images[:, 1:], targets, made, shown, composites)


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


def needs_photographs(blend: object, crop: object) -> bool:
    """Whether an edit with these settings is pasted into its photographs; one with a mask is too."""
    return crop is not None or _blends(blend)


def _blends(blend: object) -> bool:
    """Whether a setting blends any target by words; lists as for ``edit``."""
    if isinstance(blend, list):
        return any(_blends(one) for one in cast("list[object]", blend))
    return blend is not None


def _composites(
    edits: Tensor,
    photographs: Sequence[Photograph],
    masks: Sequence[Tensor],
    words: Tensor | None,
    feather: int | None,
    downscaling: int,
) -> tuple[tuple[Tensor, ...], ...]:
    """Pastes every edit into its photograph; see ``Edited.composites``.

    Args:
        edits: [N, K, C, H, W].
        photographs: one for each image.
        masks: the user's masks as given, one for each image; without masks the whole crop may change.
        words: the mask of the blend words, [N, K, H, W], of which 0 stays; None for none.
        feather: see ``edit``.
        downscaling: pixels of the image per pixel of the latent, for the default feather.
    """
    size = (edits.shape[3], edits.shape[4])
    rows: list[tuple[Tensor, ...]] = []
    for n, photograph in enumerate(photographs):
        row: list[Tensor] = []
        allowed = on_crop(masks[n], photograph, size) if masks else torch.ones(photograph.crop_size)
        for k in range(edits.shape[1]):
            mask = allowed
            if words is not None:
                mask = mask * enlarged((words[n, k].cpu() > 0).float(), photograph.crop_size)
            width = usual_feather(mask, size, downscaling) if feather is None else feather
            row.append(pasted(photograph, edits[n, k], mask, width))
        rows.append(tuple(row))
    return tuple(rows)


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


def _sampled(
    model: Model,
    solver: Solver,
    code: LatentCode,
    targets: Conditioning,
    guidance: Guidance,
    plan: AttentionPlan | None,
    mask: Tensor | None,
    batch: int,
    phases: "_Phases",
    on_event: OnEvent,
) -> tuple[Tensor, Tensor | None]:
    """Samples all sources with their targets, in batches.

    Args:
        model, solver, code, guidance, plan: of all N sources.
        targets: the targets' conditions, N * K rows, those of one image next to each other.
        mask: the user's mask in pixels of the images, [N, 1, H, W], or None.
        batch, on_event: see ``edit``.
        phases: counts the steps.

    Returns:
        Images [N, 1 + K, C, H, W] in [0, 1], and the mask of the last step, [N, K, H, W], or None.
    """
    many = (targets.rows or len(code)) // len(code)
    per = max(1, batch // (1 + many))
    chunks = [slice(k, k + per) for k in range(0, len(code), per)]
    report = phases.sampling((code.grid.steps - solver.first(code.grid)) * len(chunks))
    mask = None if mask is None else to_latent(mask, code.state["x"].shape[-2:]).to(model.device)
    parts: list[tuple[Tensor, Tensor | None]] = []
    call = Call(on_engine=engine_events(on_event))
    with nullcontext() if plan is None else model.controlled():
        for which in chunks:
            part = _forward_with_targets(
                model,
                solver,
                code[which],
                targets[which.start * many : which.stop * many],
                guidance,
                None if plan is None else plan[which],
                None if mask is None else mask[which],
                report,
                call,
            )
            parts.append(part)
            on_event(ImagesEvent(which.start, part[0]))
    images = torch.cat([pictures for pictures, _ in parts])
    masks = [last for _, last in parts if last is not None]
    shown = torch.nn.functional.interpolate(torch.cat(masks), images.shape[-2:]) if masks else None
    return images, shown


def _forward_with_targets(
    model: Model,
    solver: Solver,
    code: LatentCode,
    targets: Conditioning,
    guidance: Guidance,
    plan: AttentionPlan | None,
    mask: Tensor | None,
    report: OnStep,
    call: Call,
) -> tuple[Tensor, Tensor | None]:
    """Samples some sources together with their targets.

    Args:
        model, solver, code, guidance, plan, report: of these sources.
        call: the arguments of the network calls.
        targets: the targets' conditions, n * K rows, those of one image next to each other.
        mask: the user's mask at the latent's resolution, or None.

    Returns:
        Images [n, 1 + K, C, H, W] in [0, 1], and the mask of the last step [n, K, h, w], or None.
    """
    n = len(code)
    k = (targets.rows or n) // n

    def rows(x: Tensor) -> Tensor:
        return x.to(model.device).repeat_interleave(1 + k, dim=0)

    repeated = {key: rows(v) for key, v in code.state.items()}
    state = state_of(solver, repeated, code.grid, model.device, model.state_dtype)
    own = code.conditions.to(model.device)
    facts = {name: t.repeat_interleave(k, 0) for name, t in own.cond.tensors.items() if name not in CONTENT}
    chosen = {name: t for name, t in targets.tensors.items() if name in CONTENT}
    targets = Conditioning({**chosen, **facts}, targets.numbers)
    order = [row for i in range(n) for row in (i, *range(n + i * k, n + (i + 1) * k))]
    cond = Conditioning.cat([own.cond, targets])[order]
    kept = {key: v.to(model.device) for key, v in code.extras.items()}
    repeated_extras = {key: rows(v) for key, v in kept.items() if key not in ("pivot", "end")}
    conditions = PromptConditioning(cond, None if own.uncond is None else own.uncond.repeat(1 + k))
    prompts = prompts_of(conditions, code.grid, repeated_extras)
    denoise = model.guided(guidance, prompts, hold=hold_of(code), call=call)
    controlled = Controlled(PinnedSolver(solver, kept, rows=slice(0, None, 1 + k)), plan, mask)
    with half_precision_hint(model):
        end = solve(denoise, controlled, state, code.grid, noise=stored_noise(repeated_extras), on_step=report)
    x = _sources_where_equal(controlled.read(end), own.cond, targets, code, guidance, plan)
    last = controlled.mask(end, code.grid.steps - 1, code.grid.steps, x)
    pictures = in_groups(model.decode(x), n, 1 + k)
    return pictures, None if last is None else last.expand(n, k, -1, -1)


def _sources_where_equal(
    x: Tensor,
    sources: Conditioning,
    targets: Conditioning,
    code: LatentCode,
    guidance: Guidance,
    plan: AttentionPlan | None,
) -> Tensor:
    """Replaces each target whose condition equals its source's by the source's sample.

    Equal rows of one batch can differ in their last bits, and guidance amplifies the difference. A source that is
    pinned to its inversion is no sample of its own condition, so its targets stay; so do targets with weighted words,
    and targets beside an exact code that was made for another guidance.

    Args:
        x: the samples [N (1 + K), ...].
        sources, targets: conditions, N and N * K rows.
        code: the sources' code.
        guidance: of sampling, without an embedded scale.
        plan: of attention control, or None.
    """
    n = len(code)
    k = (targets.rows or n) // n
    own = replace(Guidance.of(code.guidance), embedded=None)
    replayed = code.method in REVERSIBLE and own.options == guidance.options
    if {"pivot", "end"} & set(code.extras) and not replayed:
        return x
    rows = in_groups(x, n, 1 + k).clone()
    both = Conditioning.cat([sources, targets]).tensors.values()  # padded alike
    for i in range(n):
        for j in range(k):
            same = all(bool(torch.equal(tensor[n + i * k + j], tensor[i])) for tensor in both)
            if same and (plan is None or plan.scales is None or bool((plan.scales[i, j] == 1).all())):
                rows[i, 1 + j] = rows[i, 0]
    return torch.flatten(rows, 0, 1)


def _forward(code: LatentCode, guidance: float | Guidance | None) -> Guidance:
    """The guidance of sampling; warns where the code was made for another and the source is not pinned."""
    own = Guidance.of(code.guidance)
    forward = own if guidance is None else guidance if isinstance(guidance, Guidance) else own.at(guidance)
    alike = replace(forward, embedded=own.embedded).options == own.options  # sources keep their embedded scale
    if not alike and not {"pivot", "end"} & set(code.extras):
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
    return f"{guidance.weight:g}{rescale}{interval}{skip}"


class _Phases:
    """Counts the steps of the inversion, of the replay of an exact code and of sampling together.

    The number of steps of a phase is known only when it begins. Until then the phases to come count as equal to the
    present one; ``count`` is their number.
    """

    def __init__(self, on_event: OnEvent, count: int) -> None:
        self.on_event, self.before, self.count = on_event, 0, count

    def before_sampling(self) -> OnEvent:
        """The ``on_event`` of a phase before sampling. Its codes are not passed on; ``on_code`` gets the whole one."""
        done, left = self.before, self.count
        self.count -= 1

        def on_event(event: Event) -> None:
            if isinstance(event, StepEvent):
                self.before = done + event.total
                self.on_event(StepEvent(done + event.done, done + event.total * left))
            elif isinstance(event, (LossEvent, EngineEvent)):
                self.on_event(event)

        return on_event

    def sampling(self, total: int) -> OnStep:
        """What sampling calls after each of its ``total`` steps."""
        before = self.before

        def on_event(event: Event) -> None:
            if isinstance(event, StepEvent):
                self.on_event(StepEvent(before + event.done, before + event.total))

        return Report(on_event, total, 1, 1)
