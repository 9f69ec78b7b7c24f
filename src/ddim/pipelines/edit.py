"""The pipeline ``edit``: changes real images, or their codes, by prompts or by classes.

It goes through six stages, of which the first three check everything that can be wrong before any work: what is asked
(``edit_asked``), the source (``edit_source``), the targets (``edit_targets``), the inversion of images (``invert``), a
run for each strength (``edit_runs``), which samples the targets beside their source or by an editor, and the result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.contracts import Inversion
from ..core.guidance import Guidance
from ..data.images import ImageLike
from ..data.photographs import CropLike
from ..editing.auto_mask import AutoMask
from ..editing.blend import MaskLike
from ..editing.plan import AttentionEdit
from ..editing.prompts import Weights
from ..inversion.latent_code import LatentCode
from ..models.base import Model
from .common import Spacing, check_made_for, check_run, in_model_threads, need_model, translated
from .edit_asked import Asked, Inverting, Region, Words
from .edit_plan import Blend
from .edit_runs import run_of
from .edit_source import Source, inverted, source_of
from .edit_targets import Targets, targets_of
from .events import OnEvent, silent
from .film import gathered, of_strengths
from .pasting import composites_of
from .phases import Phases
from .pictures import Pictures
from .target_batches import Made, TargetBatches


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
    check_run(batch, on_event, on_code)
    code = source if isinstance(source, LatentCode) else None
    if code is not None:
        check_made_for(model, code)
    guidance = translated(model, guidance, guidance_scale)

    words = Words(prompt, source_prompt, labels, source_labels, blend, weights, negative)
    region = Region(mask, auto_mask, crop, resize, feather)
    inverting = Inverting(method, options, steps, spacing, inversion_guidance, clip_x0, threshold, seed)
    asked = Asked.of(model, code, words, region, inverting, guidance, attention, strength)
    given = source_of(model, source, asked)
    targets = targets_of(model, asked, given)

    phases = Phases(on_event, (code is None) + given.exact + len(given.reaches))
    if code is None:
        code = inverted(model, given, asked, targets.own, batch, phases.before_sampling())
    if on_code is not None:
        on_code(code)

    on_images = gathered(on_event, len(given.reaches))
    batches = TargetBatches(len(code), len(targets.names[0]), batch, phases, on_images)
    run = run_of(model, asked, given, targets, code, batches, batched_cfg=batched_cfg)
    return _edited(model, asked, given, targets, code, [run(reach) for reach in given.reaches])


def _edited(
    model: Model, asked: Asked, source: Source, targets: Targets, code: LatentCode, runs: Sequence[Made]
) -> Edited:
    """Puts the images of all strengths together, and pastes them into the photographs.

    Args:
        model: the model.
        asked, source, targets: what was edited, and to what.
        code: of the sources.
        runs: what was made at each strength.
    """
    images = of_strengths([made for made, _ in runs], sources=1)
    masks = [mask for _, mask in runs if mask is not None]
    shown = of_strengths(masks) if masks else None
    composites = None
    if source.photographs:
        by_words = targets.plan is not None and targets.plan.blend is not None
        found = shown if by_words or asked.auto is not None else None
        pasting = (source.photographs, source.user_masks, found, asked.region.feather, model.downscaling)
        composites = composites_of(images[:, 1:], *pasting)
    return Edited(
        source=source.pixels,
        reconstruction=images[:, 0],
        edits=images[:, 1:],
        prompts=tuple(tuple(name for name in row for _ in runs) for row in targets.names),
        code=code,
        blend_mask=shown,
        composites=composites,
        strengths=source.strengths,
    )
