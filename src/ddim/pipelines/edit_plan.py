"""Plans an edit: reads prompts, classes, weights, blend words and masks, and refuses wrong ones before any work."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._utils.choices import ATTENTIONS, AUTO_BLEND
from .._utils.errors import InputError, is_whole
from .._utils.tensors import in_groups, whole_numbers
from .._utils.texts import check_text, parse_weights, refuse_weights, texts_for
from ..editing.align import refine
from ..editing.align import replace as swap
from ..editing.editors.base import Editor
from ..editing.plan import AttentionEdit, AttentionPlan
from ..editing.prompts import Weights, blend_words, changed_masks, per_target, scales, target_prompts, token_mask
from ..editing.tokens import PromptTokens
from ..inversion.latent_code import LatentCode
from ..models.base import Model, class_labels
from .capabilities import check_class_edit, check_prompt_edit
from .common import latent_size

Blend = str | tuple[str, str] | None


def by_class(model: Model, prompt: object, labels: object) -> bool:
    """Whether classes edit, not prompts. Raises InputError where the model takes neither, or the other was passed."""
    if model.text:
        if labels is not None:
            check_class_edit(model)
        if prompt is None:
            raise InputError("an edit needs a prompt: what the image is to show.", parameter="prompt")
        return False
    check_class_edit(model)
    if prompt is not None:
        check_prompt_edit(model)
    if labels is None:
        raise InputError(
            f"an edit needs the class to edit to, from 0 to {model.classes - 1}.",
            parameter="labels",
        )
    return True


def attention_asked(attention: object, by_class: bool, editor: Editor | None = None) -> AttentionEdit:
    """The attention control.

    Raises:
        InputError: it is of another type, or it is for a model without words or an editor without attention control.
    """
    if attention is None:
        return AttentionEdit("none" if by_class or editor is not None else "refine")
    how = AttentionEdit(attention) if isinstance(attention, str) else attention
    if not isinstance(how, AttentionEdit):
        raise InputError(
            f"{attention!r} is neither an AttentionEdit nor one of: {', '.join(ATTENTIONS)}.", parameter="attention"
        )
    if by_class and how.kind != "none":
        raise InputError(
            f"{how.kind!r} controls attention beside a prompt, and this edit is by class; use 'none'.",
            parameter="attention",
        )
    if editor is not None and how.kind != "none":
        raise InputError(
            f"{how.kind!r} makes targets follow the attention of a source beside them, which {editor.name!r} does not "
            "sample; use 'none', or a method such as 'direct'.",
            parameter="attention",
        )
    return how


def refuse_words(editor: Editor, blend: object, weights: object, prompts: Iterable[Iterable[str]]) -> None:
    """Raises InputError for blend words or weighted words of an editor, which has no attention control."""
    inline = next((text for row in prompts for text in row if parse_weights(text)[1]), None)
    for name, value in {"blend": blend, "weights": weights, "prompt": inline}.items():
        if value is not None:
            raise InputError(
                f"{value!r} needs attention control, which {editor.name!r} does without; leave it out, or use a method "
                "such as 'direct'.",
                parameter=name,
            )


def source_prompts(prompts: str | Sequence[str] | None, count: int) -> list[str]:
    """The source prompt of each of ``count`` images.

    Raises:
        InputError: None, values that are not text, another number of prompts, weighted words.
    """
    if prompts is None:
        raise InputError(
            "an edit of an image needs a prompt of what the image shows; it may be empty.", parameter="source_prompt"
        )
    return [refuse_weights(text, "source_prompt") for text in texts_for(prompts, count, "source_prompt")]


def prompts_of_code(code: LatentCode, source_prompt: str | Sequence[str] | None, negative: str | None) -> list[str]:
    """The source prompts of a code. Raises InputError where it has none, or others were passed."""
    if not code.prompts:
        raise InputError(
            "it has no prompt, so a prompt cannot edit it; invert the image with its prompt.", parameter="code"
        )
    if source_prompt is not None and source_prompts(source_prompt, len(code)) != list(code.prompts):
        raise InputError(
            f"{source_prompt!r}, but the code was made with {code.prompts[0]!r}; leave it out.",
            parameter="source_prompt",
        )
    if negative and refuse_weights(check_text(negative, "negative"), "negative") != code.negative:
        raise InputError(
            f"{negative!r}, but the code was made with {code.negative or ''!r}; leave it out.", parameter="negative"
        )
    return list(code.prompts)


def planned(
    model: Model,
    sources: Sequence[str],
    prompt: str | Sequence[str] | Sequence[Sequence[str]],
    size: tuple[int, int],
    how: AttentionEdit,
    blend: Blend | list[Any] = None,
    weights: Weights | list[Any] | None = None,
    *,
    masked: bool = False,
) -> tuple[tuple[tuple[str, ...], ...], AttentionPlan | None]:
    """Plans an edit by prompts.

    Args:
        model, prompt, blend, weights: as for ``edit``.
        sources: the source prompts, one for each image.
        size: (height, width) of the images.
        how: attention control.
        masked: whether there will be a mask.

    Returns:
        The targets without their weights, [N][K]; the plan for attention, or None.

    Raises:
        InputError: what ``edit`` raises about prompts and words.
    """
    wanted = [[parse_weights(p) for p in row] for row in target_prompts(prompt, len(sources))]
    targets = tuple(tuple(p for p, _ in row) for row in wanted)
    if how.takes("key_value_steps") and how.key_value_area == "background" and not masked:
        raise InputError(
            f"{how.kind!r} takes over the keys and values outside of a mask, and there is none; give a mask.",
            parameter="mask",
        )
    plan = _plan(model, how, sources, wanted, blend, weights, size)
    if plan is None or plan.blend is None:
        if how.key_value_area == "words":
            raise InputError(
                "'words' needs the areas of blend words, and there are none; give blend words.",
                parameter="key_value_area",
            )
        how.refuse(("blend_start", "blend_threshold", "blend_side"), "since no words blend")
    if plan is None or plan.scales is None:
        how.refuse(("weight_steps",), "since no word has a weight")
        if how.kind == "none":
            how.refuse(("layers", "layer_indices"), "since attention 'none' changes it in no layer")
    elif how.weight_steps is None and how.weight_window[0] == how.weight_window[1]:
        raise InputError(
            "they act in the part of the steps in which cross-attention follows the source, and cross_steps is empty; "
            "set weight_steps.",
            parameter="weights",
        )
    if plan is not None:
        _check_layers(plan)
        if plan.blend is not None and how.blend_start == 1 and how.key_value_area != "words":
            raise InputError(
                "after 1, all of the steps, none is left in which the words could blend; 0.2 is usual.",
                parameter="blend_start",
            )
    return targets, plan


def _check_layers(plan: AttentionPlan) -> None:
    """Raises InputError for a setting that leaves no map of the network to take over, or none to blend by."""
    how = plan.edit
    looking = [layer.size(plan.size) for layer in plan.layers if layer.picture]
    if not looking:
        if how.takes("key_value_steps"):
            raise InputError(
                f"{how.kind!r} takes over keys and values of attention to the image, which is linear in this network; "
                "use 'refine' or 'none'.",
                parameter="attention",
            )
        windows = (name for name in ("self_steps", "value_steps") if getattr(how, name)[0] < getattr(how, name)[1])
        how.refuse(
            (*windows, "self_positions"), "since this network's attention to the image is linear and has no maps"
        )
    fewest = min((height * width for height, width in looking), default=0)
    if how.self_positions is not None and how.self_positions < fewest:
        raise InputError(
            f"every layer that looks at the image has at least {fewest} positions, so that none is taken over at "
            f"{how.self_positions}; use more, or leave it out.",
            parameter="self_positions",
        )
    if how.blend_side is not None and how.blend_side < max(plan.blend_size):
        raise InputError(
            f"the smallest maps of the words are {plan.blend_size[1]}x{plan.blend_size[0]}, so that none fits "
            f"{how.blend_side}; use {max(plan.blend_size)} or more, or leave it out.",
            parameter="blend_side",
        )


def _plan(
    model: Model,
    how: AttentionEdit,
    sources: Sequence[str],
    wanted: Sequence[Sequence[tuple[str, dict[int, float]]]],
    blend: Any,
    weights: Any,
    size: tuple[int, int],
) -> AttentionPlan | None:
    """The plan for attention control; None where nothing is controlled."""
    n, k = len(wanted), len(wanted[0])
    blends, weighted = per_target("blend", blend, n, k), per_target("weights", weights, n, k)
    inlines = any(inline for row in wanted for _, inline in row)
    asked = inlines or any(one is not None for rows in (blends, weighted) for row in rows for one in row)
    if how.kind == "none" and not asked:  # no word is looked for
        return None
    sites = model.attention_sites()  # raises before any word is looked for
    features = model.feature_sites() if how.takes("feature_steps") else ()
    cuts = {p: model.tokens(p) for p in {*sources, *(p for row in wanted for p, _ in row)}}
    length = max(tokens.length for tokens in cuts.values())
    mappings: list[Tensor] = []
    news: list[Tensor] = []
    factors: list[Tensor | None] = []
    places: list[Tensor | None] = []
    for i, source in enumerate(sources):
        for j, (target, inline) in enumerate(wanted[i]):
            mapping, new = (swap if how.kind == "replace" else refine)(cuts[source], cuts[target])
            rows, columns = (length - side for side in mapping.shape)
            mappings.append(pad(mapping, (0, columns, 0, rows)))
            news.append(pad(new, (0, columns), value=True))
            factor = scales(cuts[target], inline, weighted[i][j])
            factors.append(None if factor is None else pad(factor, (0, length - len(factor)), value=1.0))
            places.append(_places(cuts[source], cuts[target], blends[i][j], length))
    some_factors, some_places = any(f is not None for f in factors), any(p is not None for p in places)
    if how.kind == "none" and not some_factors and not some_places:
        return None
    everywhere, ones = torch.zeros(2, length), torch.ones(length)

    def grouped(rows: list[Tensor]) -> Tensor:
        return in_groups(torch.stack(rows), n, k).to(model.device)

    return AttentionPlan(
        how,
        sites,
        latent_size(model, size),
        grouped(mappings),
        grouped(news),
        grouped([ones if f is None else f for f in factors]) if some_factors else None,
        grouped([everywhere if p is None else p for p in places]) if some_places else None,
        features=features,
    )


def _places(source: PromptTokens, target: PromptTokens, blend: Blend, length: int) -> Tensor | None:
    """The tokens of the blend words in source and target, [2, L] for L = ``length``; None without blend words."""
    if blend is None:
        return None
    if blend == AUTO_BLEND:
        masks = list(changed_masks(source, target))
    else:
        masks = [token_mask(t, words) for t, words in zip((source, target), blend_words(blend), strict=True)]
    return torch.stack([pad(mask, (0, length - len(mask))) for mask in masks])


def planned_classes(
    model: Model,
    code: LatentCode | None,
    source_labels: Any,
    labels: Any,
    count: int,
    words: Mapping[str, object],
) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
    """Plans an edit by classes.

    Args:
        model, source_labels, labels: as for ``edit``.
        code: the sources' code; None for images.
        count: the number of sources.
        words: settings that only go with prompts, by name; None where they were not passed.

    Returns:
        The sources' classes, and the targets' classes [N][K].

    Raises:
        InputError: what ``edit`` raises about classes and prompts.
    """
    for name, value in words.items():
        if value is not None:
            raise InputError("it goes with prompts, and this edit is by class; leave it out.", parameter=name)
    own = _labels_of(model, code, source_labels, count)
    return own, _target_labels(model, labels, count)


def _labels_of(model: Model, code: LatentCode | None, labels: Any, count: int) -> list[int]:
    """The sources' classes: a code's own, or those passed. Raises InputError for none, or for others."""
    own = None if code is None else code.conditions.cond.tensors.get("labels")
    if labels is None and own is None:
        raise InputError(
            f"an edit needs the image's own class, from 0 to {model.classes - 1}.", parameter="source_labels"
        )
    passed = None
    if labels is not None:
        passed = whole_numbers(class_labels(labels, count, model.classes, model.name, parameter="source_labels"))
    kept = passed if own is None else whole_numbers(own)
    if passed is not None and passed != kept:
        raise InputError(f"{labels}, but the code was made with {kept}; leave it out.", parameter="source_labels")
    assert kept is not None
    return kept


def _target_labels(model: Model, labels: Any, count: int) -> tuple[tuple[int, ...], ...]:
    """The targets' classes, ``[N][K]``: one class or a list for all images, or a list for each image.

    Raises:
        InputError: a value that is no class, or another number of lists than images.
    """
    listed: list[Any] = (
        [labels] if is_whole(labels) or not isinstance(labels, Iterable) else list(cast("Iterable[Any]", labels))
    )
    rows = listed if listed and all(isinstance(row, (list, tuple)) for row in listed) else [listed] * count
    if len(rows) != count or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise InputError(
            f"{labels!r} is not a class, a list of classes, or one list for each image.", parameter="labels"
        )
    return tuple(tuple(whole_numbers(class_labels(list(r), len(r), model.classes, model.name))) for r in rows)
