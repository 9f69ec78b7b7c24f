"""The pipeline ``edit``: from a real picture, or its code, to what other words or another class make of it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import DDIMWarning, InputError
from .._utils.tensors import in_groups
from ..core.conditioning import ASKED_FOR, Conditioning, PromptConditioning
from ..core.contracts import Inversion, OnStep, Solver
from ..core.guidance import Guidance
from ..core.solve import solve
from ..data.images import ImageLike, read_images
from ..editing.blend import MaskLike, to_latent
from ..editing.controlled import Controlled
from ..editing.plan import AttentionEdit, AttentionPlan
from ..editing.prompts import Weights
from ..inversion import make_inversion
from ..inversion.latent_code import LatentCode
from ..inversion.replay import PinnedSolver, kept_noise, prompts_of, resumed
from ..models.base import Model
from ..solvers import make_solver
from .common import (
    Report,
    Spacing,
    check_embedded,
    check_run,
    grid_for,
    half_precision_hint,
    hold_of,
    latent_size,
    need_model,
    picture_shape,
    solver_of,
)
from .edit_plan import Blend, attention_asked, by_class, planned, planned_classes, prompts_of_code, source_prompts
from .events import Event, ImagesEvent, LossEvent, OnEvent, StepEvent, silent
from .invert import invert

FREE = ("direct", "edit-friendly")
"""Methods that put the source back where it was, whatever the guidance."""


@dataclass(frozen=True, eq=False)
class Edited:
    """What ``edit`` made of N pictures with K targets each.

    Attributes:
        source: the pictures, [N, C, H, W] in [0, 1]; None where only their code was given.
        reconstruction: what comes back under the source's own words or class, beside the targets, [N, C, H, W] in [0,
            1].
        edits: [N, K, C, H, W] in [0, 1].
        prompts: the targets as the model read them, ``[N][K]``; the classes, of a model without text.
        code: that the way forward started from.
        blend_mask: where an edit may differ from its source at the last step, [N, K, H, W] in [0, 1], the latent's
            pixels enlarged; None without blending.
    """

    source: Tensor | None
    reconstruction: Tensor
    edits: Tensor
    prompts: tuple[tuple[str | int, ...], ...]
    code: LatentCode
    blend_mask: Tensor | None = None


def edit(
    model: Model,
    source: ImageLike | LatentCode,
    prompt: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    source_prompt: str | Sequence[str] | None = None,
    labels: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
    source_labels: int | Sequence[int] | None = None,
    method: str | Inversion | None = None,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    attention: str | AttentionEdit | None = None,
    blend: Blend | list[Any] = None,
    weights: Weights | list[Any] | None = None,
    mask: MaskLike | None = None,
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
    """Edits real pictures with words (prompt-to-prompt, Hertz et al. 2022, arXiv 2208.01626), or by another class.

    Each source goes forward under its own words, and beside it its targets, whose attention follows the source's. A
    class-conditional model goes forward under the source's class and under the targets'.

    Args:
        model: from ``ddim.load``: a text-to-image model, or a class-conditional one.
        source: pictures, as ``invert`` takes them, or the code of some.
        prompt: what they are to become: one target, a list of targets, or such a list for each picture.
            ``(word:2.0)`` weighs a word.
        source_prompt: what the pictures show, one for all or one each; a code knows its own.
        labels: in place of ``prompt``, for a class-conditional model: one class, a list of them, or such a list for
            each picture.
        source_labels: the pictures' own classes, one for all or one each; a code knows its own.
        method, steps, options, inversion_guidance, seed, spacing: of the inversion, as in ``invert``; by default
            ``"direct"`` with 50 steps and seed 0. Not for a code, which was inverted already.
        clip_x0, threshold: of both ways, as in ``invert``. Not for a code, which keeps how its x0 were held.
        guidance: w of the way forward; by default the code's own; for pictures the model's usual one
            (``ModelInfo.guidance``: 7.5 for Stable Diffusion, 5 for SDXL), or 1 where classes edit.
        attention: ``"refine"`` (the default), ``"replace"``, ``"none"``, or an ``AttentionEdit`` with windows.
        blend: ``"cat/tiger"`` or ``("cat", "tiger")``: only where these words of the source or of the target lie may
            change. A list has one a target (or one such list a picture); None blends nothing.
        weights: word -> factor on its attention, as ``(word:2.0)``; lists as for ``blend``.
        mask: of the pictures' size: 1, or white, may change, 0, black and what is transparent stay the source's; see
            ``MaskLike``. With ``blend``, only where both say so.
        negative: the prompt that guidance leads away from, for pictures; a code has its own.
        resize: fit pictures of another size; not for a code.
        batch: sources and targets a network call, each picture with all its targets at the least.
        batched_cfg: on the way forward, ask for both branches of guidance in one batch; False asks one after the other,
            with half the memory. A ``Guidance`` that says so is heeded too, and on the way back.
        on_code: called once with the sources' code, before sampling begins: to save what took time to invert.
        on_event: called with a ``StepEvent`` after each step, of the way back and forward together, with a
            ``LossEvent`` while a method tunes, and with an ``ImagesEvent`` when a batch is done, its images [n, 1 + K,
            C, H, W].

    Returns:
        Pictures, reconstructions, edits.

    Raises:
        InputError: a model without text or classes, no source prompt or class, a word that is not in its prompt,
            unequal numbers of words for ``"replace"``, a mask of another size, settings of the inversion for a code, a
            setting that would do nothing; and what ``invert`` and ``reconstruct`` raise.
        DDIMError: the network returned NaN, or its attention layers are not what was expected.
    """
    need_model(model)
    check_run(batch, on_event)
    classes = by_class(model, prompt, labels)
    if source_labels is not None and not classes:
        raise InputError("they go with classes, and words edit here; leave them out.", parameter="source_labels")
    if isinstance(guidance, Guidance):
        check_embedded(model, guidance)
    how = attention_asked(attention, classes)
    pixels = None
    count_of_steps, way_back = 50 if steps is None else steps, "direct" if method is None else method
    if isinstance(source, LatentCode):
        asked = {"method": method, "steps": steps, "options": options or None}
        asked |= {"clip_x0": clip_x0, "threshold": threshold}
        asked |= {"inversion_guidance": inversion_guidance, "seed": seed, "spacing": spacing, "resize": resize or None}
        if idle := [name for name, value in asked.items() if value is not None]:
            raise InputError("it goes with images; the code is inverted already, so leave it out.", parameter=idle[0])
        count, size = len(source), picture_shape(model, source)[1:]
        grid, solver = source.grid, make_solver(source.solver, source.options)
    else:
        pixels = read_images(source, model.picture, resize=resize, multiple=model.multiple)
        count, size = len(pixels), (pixels.shape[2], pixels.shape[3])
        grid = grid_for(model, count_of_steps, spacing, latent_size(model, size))
        solver = make_inversion(way_back, options).solver()
    code = source if isinstance(source, LatentCode) else None
    if classes:
        words = {"source_prompt": source_prompt, "blend": blend, "weights": weights, "negative": negative}
        own, targets, given = planned_classes(model, code, source_labels, labels, count, size, words, mask)
        plan = None
        conditions = model.condition([k for row in targets for k in row], count * len(targets[0]), size=size).cond
    else:
        own = source_prompts(source_prompt, count) if code is None else prompts_of_code(code, source_prompt, negative)
        assert prompt is not None
        taken = range(solver.first(grid), grid.steps)
        targets, given, plan = planned(model, own, prompt, size, how, blend, weights, mask, taken)
        conditions = _embedded(model, [p for row in targets for p in row], size)
    phases = _Phases(on_event, 1 if code is not None else 2)
    if code is None:
        assert pixels is not None
        usual = None if classes else model.info.guidance
        code = invert(
            model,
            pixels,
            steps=count_of_steps,
            method=way_back,
            spacing=spacing,
            options=options,
            labels=own if classes else None,  # type: ignore[arg-type]
            prompt=None if classes else source_prompt,
            negative=negative,
            guidance=usual if guidance is None else guidance,
            clip_x0=clip_x0,
            threshold=threshold,
            inversion_guidance=inversion_guidance,
            seed=0 if seed is None else seed,
            batch=batch,
            on_event=phases.back(),
        )
    if on_code is not None:
        on_code(code)
    forward = _forward(code, guidance)
    if not batched_cfg:
        forward = replace(forward, batched_cfg=False)
    solver = solver_of(model, code)
    many = len(targets[0])
    per = max(1, batch // (1 + many))
    chunks = [slice(k, k + per) for k in range(0, len(code), per)]
    report = phases.counted((code.grid.steps - solver.first(code.grid)) * len(chunks))
    latent_mask = None if given is None else to_latent(given, code.state["x"].shape[-2:]).to(model.device)
    parts: list[tuple[Tensor, Tensor | None]] = []
    with nullcontext() if plan is None else model.controlled():  # without a plan nothing of the network is touched
        for which in chunks:
            rows = slice(which.start * many, which.stop * many)
            part = _forward_with_targets(
                model,
                solver,
                code[which],
                conditions[rows],
                forward,
                None if plan is None else plan[which],
                None if latent_mask is None else latent_mask[which],
                report,
            )
            parts.append(part)
            on_event(ImagesEvent(which.start, part[0]))
    images = torch.cat([pictures for pictures, _ in parts])
    masks = [m for _, m in parts if m is not None]
    shown = torch.nn.functional.interpolate(torch.cat(masks), images.shape[-2:]) if masks else None
    return Edited(pixels, images[:, 0], images[:, 1:], targets, code, shown)


def _embedded(model: Model, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
    """One condition a prompt; each text is encoded once."""
    texts = list(dict.fromkeys(prompts))
    return model.encode_prompt(texts, size)[[texts.index(p) for p in prompts]]


def _forward_with_targets(
    model: Model,
    solver: Solver,
    code: LatentCode,
    targets: Conditioning,
    guidance: Guidance,
    plan: AttentionPlan | None,
    mask: Tensor | None,
    report: OnStep,
) -> tuple[Tensor, Tensor | None]:
    """Pictures [n, 1 + K, C, H, W] of some sources with their targets, and the last step's mask [n, K, h, w].

    ``targets`` are the conditions of the targets, n * K rows, each image's together.
    """
    n = len(code)
    k = (targets.rows or n) // n

    def rows(x: Tensor) -> Tensor:
        return x.to(model.device).repeat_interleave(1 + k, dim=0)

    repeated = {key: rows(v) for key, v in code.state.items()}
    state = resumed(solver, repeated, code.grid, model.device, model.state_dtype)
    own = code.conditions.to(model.device)
    facts = {name: t.repeat_interleave(k, 0) for name, t in own.cond.tensors.items() if name not in ASKED_FOR}
    targets = targets.replace(**facts)
    order = [row for i in range(n) for row in (i, *range(n + i * k, n + (i + 1) * k))]
    cond = Conditioning.cat([own.cond, targets])[order]
    kept = {key: v.to(model.device) for key, v in code.extras.items()}
    repeated_extras = {key: rows(v) for key, v in kept.items()}
    conditions = PromptConditioning(cond, None if own.uncond is None else own.uncond.repeat(1 + k))
    prompts = prompts_of(conditions, code.grid, repeated_extras)
    denoise = model.guided(guidance, prompts, hold=hold_of(code))
    controlled = Controlled(PinnedSolver(solver, kept, rows=list(range(0, n * (1 + k), 1 + k))), plan, mask)
    with half_precision_hint(model):
        end = solve(denoise, controlled, state, code.grid, noise=kept_noise(repeated_extras), on_step=report)
    x = _sources_where_equal(controlled.read(end), own.cond, targets, code, plan)
    last = controlled.mask(end, code.grid.steps - 1, code.grid.steps, x)
    pictures = in_groups(model.decode(x), n, 1 + k)
    return pictures, None if last is None else last.expand(n, k, -1, -1)


def _sources_where_equal(
    x: Tensor, sources: Conditioning, targets: Conditioning, code: LatentCode, plan: AttentionPlan | None
) -> Tensor:
    """The samples [N (1 + K), ...] with the source's own in place of each target that is asked the very same.

    Rows of one batch need not agree to the bit, and what they differ by grows under guidance. A source that is put back
    on its trajectory goes another way than a target with its prompt; weighted words make another target.
    """
    n = len(code)
    k = (targets.rows or n) // n
    if {"pivot", "end"} & set(code.extras):
        return x
    rows = in_groups(x, n, 1 + k).clone()
    for i in range(n):
        for j in range(k):
            at = i * k + j
            same = all(bool(torch.equal(targets.tensors[t][at], sources.tensors[t][i])) for t in targets.tensors)
            if same and (plan is None or plan.scales is None or bool((plan.scales[i, j] == 1).all())):
                rows[i, 1 + j] = rows[i, 0]
    return torch.flatten(rows, 0, 1)


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


class _Phases:
    """One progress for the way back and the way forward, each taken as the same share of the whole.

    The total is known only when the inversion has told its own, and grows then by the steps to come.
    """

    def __init__(self, on_event: OnEvent, count: int) -> None:
        self.on_event, self.before, self.count = on_event, 0, count

    def back(self) -> OnEvent:
        """What the inversion reports to; its codes are an edit's own affair."""

        def told(event: Event) -> None:
            if isinstance(event, StepEvent):
                self.before = event.total
                self.on_event(StepEvent(event.done, event.total * self.count))
            elif isinstance(event, LossEvent):
                self.on_event(event)

        return told

    def counted(self, total: int) -> OnStep:
        """What the way forward reports to."""
        before = self.before

        def later(event: Event) -> None:
            if isinstance(event, StepEvent):
                self.on_event(StepEvent(before + event.done, before + event.total))

        return Report(later, total, 1, 1)
