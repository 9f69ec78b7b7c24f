"""The verb ``edit``: from a real picture, or its code, to what other words make of it."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from .._utils.errors import DDIMWarning, InputError
from .._utils.texts import check_text, parse_weights, texts_for, unweighted
from ..core.denoiser import bound
from ..core.guidance import NULL, WORDS, Guidance
from ..core.solve import OnStep, solve
from ..data.images import ImageLike, read_images
from ..editing.align import refine
from ..editing.align import replace as swap
from ..editing.attention import KINDS, AttentionEdit, AttentionPlan, install, within
from ..editing.blend import MaskLike, read_mask, to_latent
from ..editing.controlled import Controlled
from ..editing.prompts import Weights, blend_words, per_target, scales, target_prompts, token_mask
from ..editing.tokens import Tokens
from ..inversion.base import GuidedInversion, Inversion
from ..inversion.latent_code import LatentCode
from ..inversion.replay import KeptNoise, PinnedSolver, resumed, with_nulls
from ..models.base import Model, TextModel
from ..solvers import Solver, State
from ..solvers.lattice import steps_of_code
from .common import (
    OnImages,
    Progress,
    Spacing,
    Tell,
    check_batch,
    grid_for,
    guided_by,
    half_precision_hint,
    hold_of,
    need_model,
    way_forward,
)
from .verbs import invert

Blend = str | tuple[str, str] | None
FREE = ("direct", "edit-friendly")
"""Methods that put the source back where it was, whatever the guidance."""


@dataclass(frozen=True, eq=False)
class Edited:
    """What ``edit`` made of N pictures with K targets each.

    Attributes:
        source: the pictures, [N, C, H, W] in [0, 1]; None where only their code was given.
        reconstruction: what comes back under the source's own words, beside the targets, [N, C, H, W] in [0, 1].
        edits: [N, K, C, H, W] in [0, 1].
        prompts: the targets as the model read them, ``[N][K]``.
        code: that the walks started from.
        blend_mask: where an edit may differ from its source at the last step, [N, K, H, W] in [0, 1], the latent's
            pixels enlarged; None without blending.
    """

    source: Tensor | None
    reconstruction: Tensor
    edits: Tensor
    prompts: tuple[tuple[str, ...], ...]
    code: LatentCode
    blend_mask: Tensor | None = None


def edit(
    model: Model,
    source: ImageLike | LatentCode,
    prompt: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    source_prompt: str | Sequence[str] | None = None,
    method: str | Inversion | GuidedInversion | None = None,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    attention: str | AttentionEdit = "refine",
    blend: Blend | list[Any] = None,
    weights: Weights | list[Any] | None = None,
    mask: MaskLike | None = None,
    negative: str = "",
    options: Mapping[str, Any] | None = None,
    back: float | None = None,
    seed: int | None = None,
    spacing: Spacing | None = None,
    resize: bool = False,
    batch: int = 64,
    together: bool = True,
    progress: Progress | None = None,
    tell: Tell | None = None,
    on_batch: OnImages | None = None,
) -> Edited:
    """Edits real pictures with words (prompt-to-prompt, Hertz et al. 2022, arXiv 2208.01626).

    Each source walks forward under its own words, and beside it its targets, whose attention follows the source's.

    Args:
        model: a text-to-image model from ``ddim.load``.
        source: pictures, as ``invert`` takes them, or the code of some.
        prompt: what they are to become: one target, a list of targets, or such a list for each picture.
            ``(word:2.0)`` weighs a word.
        source_prompt: what the pictures show, one for all or one each; a code knows its own.
        method, steps, options, back, seed, spacing: of the inversion, as in ``invert``; by default ``"direct"`` with
            50 steps and seed 0. Not for a code, which was walked back already.
        guidance: w of the way forward; by default the code's own, or 7.5 for pictures.
        attention: ``"refine"``, ``"replace"``, ``"none"``, or an ``AttentionEdit`` with windows.
        blend: ``"cat/tiger"`` or ``("cat", "tiger")``: only where these words of the source or of the target lie may
            change. A list has one a target (or one such list a picture); None blends nothing.
        weights: word -> factor on its attention, as ``(word:2.0)``; lists as for ``blend``.
        mask: of the pictures' size: 1, or white, may change, 0, black and what is transparent stay the source's; see
            ``MaskLike``. With ``blend``, only where both say so.
        negative: the prompt that guidance leads away from, for pictures; a code has its own.
        resize: fit pictures of another size; not for a code.
        batch: sources and targets a network call, each picture with all its targets at the least.
        together: on the way forward, ask for both of guidance's predictions in one batch; False asks one after the
            other, with half the memory. A ``Guidance`` that says so is heeded too, and on the way back.
        progress: called after each step, of the way back and forward together.
        tell: as in ``invert``.
        on_batch: called when a batch is done, with the place of its first picture and what the pictures became,
            [n, 1 + K, C, H, W].

    Returns:
        Pictures, reconstructions, edits.

    Raises:
        InputError: a model without text, no source prompt, a word that is not in its prompt, unequal numbers of words
            for ``"replace"``, a mask of another size, settings of the inversion for a code, a setting that would do
            nothing; and what ``invert`` and ``reconstruct`` raise.
        DDIMError: the network returned NaN, or its attention layers are not what was expected.
    """
    need_model(model)
    check_batch(batch)
    model = text_model(model)
    how = AttentionEdit(attention) if isinstance(attention, str) else attention
    if not isinstance(how, AttentionEdit):
        raise InputError(
            f"{attention!r} is neither an AttentionEdit nor one of: {', '.join(KINDS)}.", parameter="attention"
        )
    pixels, size = None, None
    if isinstance(source, LatentCode):
        asked = {"method": method, "steps": steps, "options": options or None, "back": back, "seed": seed}
        asked |= {"spacing": spacing, "resize": resize or None}
        if given_too := [name for name, value in asked.items() if value is not None]:
            raise InputError(
                f"{', '.join(given_too)} cannot be set for a code, which was walked back already; leave that out, or "
                "edit the picture.",
                parameter=given_too[0],
            )
        sources, walked = _prompts_of(source, source_prompt, negative), source.grid.steps
        size = (source.state["x"].shape[2] * model.multiple, source.state["x"].shape[3] * model.multiple)
    else:
        pixels = read_images(source, model.picture, resize=resize, multiple=model.multiple)
        sources = source_prompts(source_prompt, len(pixels))
        walked = grid_for(model, 50 if steps is None else steps, spacing).steps
        size = (pixels.shape[2], pixels.shape[3])
    targets, given, plan = planned(model, sources, prompt, size, how, blend, weights, mask, walked)
    embedded = model.embed([*dict.fromkeys(p for row in targets for p in row)])
    phases = _Phases(progress, 1 if isinstance(source, LatentCode) else 2)
    if isinstance(source, LatentCode):
        code = source
    else:
        code = invert(
            model,
            pixels,
            steps=50 if steps is None else steps,
            method="direct" if method is None else method,
            spacing=spacing,
            options=options,
            prompt=source_prompt,
            negative=negative,
            guidance=7.5 if guidance is None else guidance,
            back=back,
            seed=0 if seed is None else seed,
            batch=batch,
            progress=phases.report(0) if progress else None,
            tell=tell,
        )
    forward = _forward(code, guidance)
    if not together:
        forward = replace(forward, together=False)
    solver = way_forward(model, code)
    per = max(1, batch // (1 + len(targets[0])))
    chunks = [slice(k, k + per) for k in range(0, len(code), per)]
    report = phases.counted(steps_of_code(solver, code.grid) * len(chunks))
    latent_mask = (
        None
        if given is None
        else to_latent(given, (code.state["x"].shape[2], code.state["x"].shape[3])).to(model.device)
    )
    parts: list[tuple[Tensor, Tensor | None]] = []
    for which in chunks:
        part = _walk(
            model,
            solver,
            code[which],
            torch.stack([torch.stack([embedded[p] for p in row]) for row in targets[which]]),
            forward,
            None if plan is None else plan[which],
            None if latent_mask is None else latent_mask[which],
            report,
        )
        parts.append(part)
        if on_batch is not None:
            on_batch(which.start, part[0])
    images = torch.cat([pictures for pictures, _ in parts])
    masks = [m for _, m in parts if m is not None]
    shown = torch.nn.functional.interpolate(torch.cat(masks), images.shape[-2:]) if masks else None
    return Edited(pixels, images[:, 0], images[:, 1:], targets, code, shown)


def text_model(model: Model) -> TextModel:
    """The model, which takes prompts; raises InputError where it does not."""
    if not model.text:
        raise InputError(
            f"{model.name!r} takes no prompts, so that words cannot edit; use a text model.", parameter="model"
        )
    return cast(TextModel, model)


def planned(
    model: TextModel,
    sources: Sequence[str],
    prompt: str | Sequence[str] | Sequence[Sequence[str]],
    size: tuple[int, int],
    how: AttentionEdit,
    blend: Blend | list[Any] = None,
    weights: Weights | list[Any] | None = None,
    mask: MaskLike | None = None,
    steps: int | None = None,
) -> tuple[tuple[tuple[str, ...], ...], Tensor | None, AttentionPlan | None]:
    """Targets as the model reads them, [N][K], the mask and the plan of an edit: all that can be wrong before the work.

    Args:
        model, prompt, blend, weights, mask: as for ``edit``.
        sources: what the pictures show, one each.
        size: (height, width) of the pictures.
        how: attention control.
        steps: of the way forward; None leaves unasked whether a step lies in the window of the weights.

    Raises:
        InputError: what ``edit`` raises of words and mask.
    """
    wanted = [[parse_weights(p) for p in row] for row in target_prompts(prompt, len(sources))]
    targets = tuple(tuple(p for p, _ in row) for row in wanted)
    given = None if mask is None else read_mask(mask, len(sources), size)
    plan = _plan(model, how, sources, wanted, blend, weights, size)
    if plan is None or plan.blend is None:
        how.refuse(("blend_start", "blend_threshold", "blend_side"), "since no words blend")
    if plan is None or plan.scales is None:
        how.refuse(("weight_steps",), "since no word has a weight")
    elif how.weight_steps is None and steps and not any(within(how.weight_window, i, steps) for i in range(steps)):
        begin, end = how.weight_window
        raise InputError(
            f"they are scaled where cross maps are taken over, ({begin:g}, {end:g}) of the steps, where none of "
            f"{steps} lies; give weight_steps.",
            parameter="weights",
        )
    return targets, given, plan


def _walk(
    model: TextModel,
    solver: Solver,
    code: LatentCode,
    targets: Tensor,
    guidance: Guidance,
    plan: AttentionPlan | None,
    mask: Tensor | None,
    report: OnStep,
) -> tuple[Tensor, Tensor | None]:
    """Pictures [n, 1 + K, C, H, W] of some sources with their targets, and the last step's mask [n, K, h, w].

    ``targets`` are the embedded prompts, [n, K, L, D].
    """
    n, k = targets.shape[:2]

    def rows(x: Tensor) -> Tensor:
        return x.to(model.device).repeat_interleave(1 + k, dim=0)

    repeated = {key: rows(v) for key, v in code.state.items()}
    state = resumed(solver, repeated, code.grid, model.device, model.state_dtype)
    cond = {key: rows(v) for key, v in code.cond.items()}
    own = code.cond[WORDS].to(targets).unsqueeze(1)
    cond[WORDS] = torch.cat([own, targets], dim=1).flatten(0, 1)
    denoise = bound(guided_by(model, guidance, hold_of(code)), cond)
    if NULL in code.extras:
        denoise = with_nulls(denoise, code.grid, rows(code.extras[NULL]))
    noise = KeptNoise(rows(code.extras["noise"])) if "noise" in code.extras else None
    kept = {key: v.to(model.device) for key, v in code.extras.items()}
    walker = Controlled(PinnedSolver(solver, kept, rows=list(range(0, n * (1 + k), 1 + k))), plan, mask)
    with half_precision_hint(model):
        end = solve(denoise, walker, state, code.grid, noise=noise, on_step=report)
    x = walker.read(end)
    last = walker.mask(end, code.grid.steps - 1, code.grid.steps, x)
    pictures = model.decode(x).unflatten(0, (n, 1 + k))
    return pictures, None if last is None else last.expand(n, k, -1, -1)


def _plan(
    model: TextModel,
    how: AttentionEdit,
    sources: Sequence[str],
    wanted: Sequence[Sequence[tuple[str, dict[int, float]]]],
    blend: Any,
    weights: Any,
    size: tuple[int, int],
) -> AttentionPlan | None:
    """What attention control needs to know; None where there is nothing to control."""
    n, k = len(wanted), len(wanted[0])
    cuts = {p: model.tokens(p) for p in {*sources, *(p for row in wanted for p, _ in row)}}
    length = cuts[sources[0]].length
    blends, weighted = per_target("blend", blend, n, k), per_target("weights", weights, n, k)
    mappings, news, factors, places = [], [], [], []
    for i, source in enumerate(sources):
        for j, (target, inline) in enumerate(wanted[i]):
            mapping, new = (swap if how.kind == "replace" else refine)(cuts[source], cuts[target])
            mappings.append(mapping)
            news.append(new)
            factors.append(scales(cuts[target], inline, weighted[i][j]))
            places.append(_places(cuts[source], cuts[target], blends[i][j]))
    some_factors, some_places = any(f is not None for f in factors), any(p is not None for p in places)
    if how.kind == "none" and not some_factors and not some_places:
        return None
    everywhere, ones = torch.zeros(2, length), torch.ones(length)

    def grouped(rows: list[Tensor]) -> Tensor:
        return torch.stack(rows).unflatten(0, (n, k)).to(model.device)

    return AttentionPlan(
        how,
        install(model.network),
        (size[0] // model.multiple, size[1] // model.multiple),
        grouped(mappings),
        grouped(news),
        grouped([ones if f is None else f for f in factors]) if some_factors else None,
        grouped([everywhere if p is None else p for p in places]) if some_places else None,
    )


def _places(source: Tokens, target: Tokens, blend: Blend) -> Tensor | None:
    """The tokens to blend by, of source and target, [2, L]."""
    if blend is None:
        return None
    return torch.stack([token_mask(t, words) for t, words in zip((source, target), blend_words(blend), strict=True)])


def _forward(code: LatentCode, guidance: float | Guidance | None) -> Guidance:
    """The guidance of the way forward; warns where the code was made for another and nothing holds the source."""
    own = Guidance.of(code.guidance)
    forward = own if guidance is None else guidance if isinstance(guidance, Guidance) else own.at(guidance)
    if forward.options != own.options and code.method not in FREE:
        warnings.warn(
            f"The code of {code.method!r} was made for guidance {_told(own, forward)}, not for "
            f"{_told(forward, own)}: the source need not come back as it was.",
            DDIMWarning,
            stacklevel=3,
        )
    return forward


def _told(guidance: Guidance, other: Guidance) -> str:
    """Its weight, and what else is not the other's."""
    low, high = guidance.interval
    rescale = f", rescale {guidance.rescale:g}" if guidance.rescale != other.rescale else ""
    interval = f", interval ({low:g}, {high:g})" if tuple(guidance.interval) != tuple(other.interval) else ""
    return f"{guidance.weight:g}{rescale}{interval}"


def _prompts_of(code: LatentCode, source_prompt: str | Sequence[str] | None, negative: str) -> list[str]:
    """The source prompts that a code keeps."""
    if WORDS not in code.cond or not code.prompts:
        raise InputError(
            "it keeps no prompt, so that words cannot edit it; invert the picture with its prompt.", parameter="code"
        )
    if source_prompt is not None and source_prompts(source_prompt, len(code)) != list(code.prompts):
        raise InputError(
            f"{source_prompt!r}, but the code was made with {code.prompts[0]!r}; leave it.", parameter="source_prompt"
        )
    if negative and unweighted(check_text(negative, "negative"), "negative") != code.negative:
        raise InputError(
            f"{negative!r}, but the code was made with {code.negative!r}; leave it out.", parameter="negative"
        )
    return list(code.prompts)


def source_prompts(given: str | Sequence[str] | None, count: int) -> list[str]:
    """What each of some pictures shows, as the model is to read it.

    Raises:
        InputError: nothing, no texts or none that can be read, another number of them, weighted words.
    """
    if given is None:
        raise InputError(
            "an edit of a picture needs to know what the picture shows; an empty one will do.",
            parameter="source_prompt",
        )
    return [unweighted(text, "source_prompt") for text in texts_for(given, count, "source_prompt")]


class _Phases:
    """One progress for the way back and the way forward, each taken as the same share of the whole.

    The total is known only when the inversion has told its own, and grows then by the steps to come.
    """

    def __init__(self, progress: Progress | None, count: int) -> None:
        self.progress, self.before, self.count = progress, 0, count

    def report(self, phase: int) -> Progress:
        """What the inversion reports to."""

        def told(done: int, total: int) -> None:
            self.before = total
            if self.progress is not None:
                self.progress(done, total * self.count)

        return told

    def counted(self, total: int) -> OnStep:
        """What the way forward reports to."""
        done, before = 0, self.before

        def told(i: int, state: State) -> None:
            nonlocal done
            done += 1
            if self.progress is not None:
                self.progress(before + done, before + total)

        return told
