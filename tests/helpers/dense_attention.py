"""Attention control on joint attention, written out as dense attention: an independent witness."""

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
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + (torch.zeros_like(scores).masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask)
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
