"""Attention control, written out as dense attention: an independent witness."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddim.editing.plan import AttentionPlan


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    image: Sequence[int],
    words: Sequence[int],
    mask: Tensor | None = None,
) -> Tensor:
    """Computes the output of a layer from all maps of all rows at once, changing one entry after the other.

    The windows of the plan's settings are either all steps or none, and it is the plan of one image: row 0 is its
    source, the other rows are its targets.

    Args:
        query, key, value: [1 + K, heads, tokens, d].
        plan: the edit.
        image, words: the positions of the image's tokens and of the words. Without words it is self-attention.
        mask: a bias for each key, or true for the keys that are seen.
    """
    edit, scales = plan.edit, plan.scales

    def whole(window: Sequence[float]) -> bool:
        assert tuple(window) in ((0.0, 1.0), (0.0, 0.0))
        return tuple(window) == (0.0, 1.0)

    takes = edit.kind != "none"
    cross, own, values = (takes and whole(w) for w in (edit.cross_steps, edit.self_steps, edit.value_steps))
    if takes and whole(edit.key_value_steps):
        key, value = key.clone(), value.clone()
        inside = tokens_of(None if plan.mask is None else plan.mask[0, 0], len(image), beyond=True)
        for row in range(1, len(key)):
            for place, changes in zip(image, inside, strict=True):
                if edit.key_value_area != "background" or not changes:
                    key[row, :, place], value[row, :, place] = key[0, :, place], value[0, :, place]
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + (torch.zeros_like(scores).masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask)
    if plan.areas is not None:
        for row in range(1, len(query)):
            source, target = (tokens_of(plan.areas[0, row - 1, side], len(image), beyond=False) for side in (0, 1))
            for query_at, own_kind in zip(image, target, strict=True):
                if own_kind in source:
                    for key_at, kind in zip(image, source, strict=True):
                        if kind != own_kind:
                            scores[row, :, query_at, key_at] = -math.inf
    maps = (scores - scores.amax(-1, keepdim=True)).exp()
    maps = maps / maps.sum(-1, keepdim=True)
    rows = [torch.einsum("hqk,hkd->hqd", maps[0], value[0])]
    for row in range(1, len(query)):
        seen = value[row].clone()
        if values:
            seen[:, image] = value[0][:, image]
        lines = maps[row][:, image].clone()
        source = maps[0][:, image]
        for j, place in enumerate(words):
            if cross and not plan.new[0, row - 1, j]:
                lines[:, :, place] = 0
                for i in plan.mapping[0, row - 1, :, j].nonzero().flatten().tolist():
                    lines[:, :, place] += float(plan.mapping[0, row - 1, i, j]) * source[:, :, words[i]]
        for place in image if own else ():
            lines[:, :, place] = source[:, :, place]
        if own or (cross and len(words)):
            lines = lines / lines.sum(-1, keepdim=True)
        for j, place in enumerate(words):
            if scales is not None and whole(edit.weight_window):
                lines[:, :, place] *= float(scales[0, row - 1, j])
        edited = maps[row].clone()
        edited[:, image] = lines
        rows.append(torch.einsum("hqk,hkd->hqd", edited, seen))
    return torch.stack(rows)


def tokens_of(area: Tensor | None, count: int, *, beyond: bool) -> list[bool]:
    """Finds which of the image's tokens touch an area of the latent.

    Args:
        area: [H, W], above 0 inside; None for no area.
        count: the number of tokens; those behind the last one of the picture are padding.
        beyond: what padding is said to be.
    """
    if area is None:
        return [False] * count
    side = 1
    while (area.shape[0] // side) * (area.shape[1] // side) > count:
        side *= 2
    rows, columns = area.shape[0] // side, area.shape[1] // side
    touched = [
        any(float(area[side * i + a, side * j + b]) > 0 for a in range(side) for b in range(side))
        for i in range(rows)
        for j in range(columns)
    ]
    return touched + [beyond] * (count - rows * columns)
