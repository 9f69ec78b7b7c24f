"""Pastes edits into their photographs."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..editing.composite import enlarged, on_crop, pasted, usual_feather
from ..inversion.photograph import Photograph


def needs_photographs(blend: object, crop: object, auto_mask: object = None) -> bool:
    """Whether an edit with these settings is pasted into its photographs; one with a mask is too."""
    return crop is not None or auto_mask is not None or blends(blend)


def blends(blend: object) -> bool:
    """Whether a setting blends any target by words; lists as for ``edit``."""
    if isinstance(blend, list):
        return any(blends(one) for one in cast("list[object]", blend))
    return blend is not None


def composites_of(
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
        words: the mask of the blend words or the automatic mask, [N, K, H, W], of which 0 stays; None for none.
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
