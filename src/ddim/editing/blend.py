"""Local blend: after each step, an edit is set to the source outside of a mask."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, max_pool2d

from .._utils.errors import InputError
from ..data.images import flatten, open_image, upright

MaskLike = Any
"""A mask: a path, a PIL image, or a tensor [H, W], [N, H, W] or [N, 1, H, W]. 1 (white) may change, 0 (black) stays.

If all values are 0 or 1, they are used as they are, in every dtype. Otherwise the values of uint8 tensors and 8-bit
images are divided by 255, those of 16-bit images by 65535, and all others must lie in [0, 1]. Transparent pixels of an
image count as black. Files and PIL images are turned upright as their EXIF data says.
"""

_COLOURED = 32
"""How much the colour channels of a grey mask may differ, of 255. Lossy file formats change them slightly."""


def read_masks(mask: MaskLike, images: int) -> list[Tensor]:
    """Reads a mask for each image, each at its own size, as float32 [H, W] in [0, 1].

    Args:
        mask: one mask for all images, or a list or tensor with one for each.
        images: the number of images.

    Raises:
        InputError: the number of masks does not fit, values lie outside [0, 1], a file cannot be read, an image has
            colours, or an image is black wherever it is not transparent.
    """
    if isinstance(mask, (list, tuple)):
        return [read_masks(m, 1)[0] for m in _as_many(mask, images)]
    x = mask if isinstance(mask, Tensor) else _from_file(mask)
    if x.is_complex():
        raise InputError(f"it is of {x.dtype}; use numbers in [0, 1], bool or uint8.", parameter="mask")
    x = x.float() / 255 if x.dtype == torch.uint8 and bool((x > 1).any()) else x.float()
    x = x.unsqueeze(1) if x.ndim == 3 and len(x) in (1, images) else x
    x = x[None, None] if x.ndim == 2 else x
    if x.ndim != 4 or x.shape[1] != 1 or len(x) not in (1, images):
        raise InputError(
            f"a mask of shape {tuple(mask.shape)} does not go with {images} images; use [H, W] or one each.",
            parameter="mask",
        )
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError(
            f"its values run from {float(x.min()):g} to {float(x.max()):g}; 0 must stay, 1 may change.",
            parameter="mask",
        )
    return list(x[:, 0].expand(images, -1, -1))


def _as_many(masks: Sequence[MaskLike], images: int) -> Sequence[MaskLike]:
    if len(masks) != images:
        raise InputError(
            f"{len(masks)} were given for {images} images; give one for all, or one each.", parameter="mask"
        )
    return masks


def _from_file(mask: MaskLike) -> Tensor:
    if isinstance(mask, (str, os.PathLike)):
        return _from_pil(open_image(Path(mask), "mask"))
    if not hasattr(mask, "getbands"):
        raise InputError(
            f"{type(mask).__name__} is not a mask; give a path, a PIL image or a tensor.", parameter="mask"
        )
    return _from_pil(upright(mask, "the mask", "mask"))


def _from_pil(image: Any) -> Tensor:
    """Converts an image to a tensor [H, W]. Floats, and values of only 0 and 1, are kept; others become grey uint8."""
    if image.mode == "F" or image.mode.startswith("I"):
        raw = np.asarray(image)
        if image.mode == "F" or raw.max(initial=0) <= 1:
            return torch.from_numpy(raw.astype(np.float32))
        if raw.max() <= 255:
            raise InputError(
                f"its values run to {raw.max()} of 65535, as good as black; save it with 8 bits, or white as 65535.",
                parameter="mask",
            )
    shown = flatten(image, "RGB", background=0, parameter="mask")
    low, high = (fold.reduce(np.asarray(shown), axis=2) for fold in (np.minimum, np.maximum))
    if int((high - low).max(initial=0)) > _COLOURED:
        raise InputError("it has colours; a mask is grey: white may change, black stays.", parameter="mask")
    if image.has_transparency_data and not high.any() and np.asarray(image.convert("RGBA"))[..., 3].any():
        raise InputError(
            "it is black wherever it is not transparent, so nothing may change; paint what may change white.",
            parameter="mask",
        )
    return torch.from_numpy(np.asarray(shown.convert("L")).copy())


def to_latent(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Converts a mask [N, 1, H, W] of images to the latent: the fraction of each latent pixel's area that may change.

    Args:
        mask: the mask in image pixels.
        size: (height, width) of the latent.
    """
    return adaptive_avg_pool2d(mask, (size[0], size[1]))


def from_maps(maps: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Computes the mask of the blend words from their attention maps (Hertz et al. 2022, section 3.2, "Local Editing").

    Args:
        maps, size, threshold: see ``word_areas``.

    Returns:
        a mask [N, K, H, W] of 0 and 1: the union of the words' areas in source and target.
    """
    return word_areas(maps, size, threshold).any(2).to(maps)


def word_areas(maps: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Returns where the blend words lie in source and target, [N, K, 2, H, W]; false everywhere without a word.

    Args:
        maps: the cross-attention maps of the words in source and target, [N, K, 2, h, w], summed over past steps.
        size: (height, width) of the latent.
        threshold: a word covers the pixels where its map exceeds this fraction of the map's maximum.
    """
    n, k = maps.shape[:2]
    spread = interpolate(max_pool2d(maps.flatten(0, 1), 3, stride=1, padding=1), size)
    top = spread.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(spread.dtype).tiny)
    return (spread / top > threshold).unflatten(0, (n, k))


def blended(x: Tensor, mask: Tensor) -> Tensor:
    """Blends targets with their source: x_target = x_source + mask (x_target - x_source).

    The rows of the sources do not change.

    Args:
        x: the samples [N (1 + K), C, H, W], each image's source before its targets; floats, or integers of a lattice.
        mask: [N, K or 1, H, W].
    """
    rows = x.unflatten(0, (len(mask), -1))
    source, targets = rows[:, :1], rows[:, 1:]
    return torch.cat([source, towards(source, targets, mask)], 1).flatten(0, 1)


def towards(source: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Returns source + mask (targets - source), [N, K, C, H, W].

    Args:
        source: [N, 1, C, H, W]; floats, or integers of a lattice.
        targets: [N, K, C, H, W].
        mask: [N, K or 1, H, W].
    """
    weight = mask[:, :, None].to(targets if targets.is_floating_point() else torch.float64)
    weight = weight.expand(*targets.shape[:2], 1, *mask.shape[2:])
    if not targets.is_floating_point():
        return source + ((targets - source) * weight).round().to(targets.dtype)
    # torch.lerp is exact where the mask is 0 or 1, which the formula above is not in floats.
    return torch.lerp(source.expand_as(targets), targets, weight)
