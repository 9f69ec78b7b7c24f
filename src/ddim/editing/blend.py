"""Local blend: what lies outside a mask stays the source's, step by step."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, max_pool2d

from .._utils.errors import InputError
from ..data.images import flatten, open_image

MaskLike = Any
"""A path, a PIL image or a tensor [H, W], [N, H, W] or [N, 1, H, W]: 1 (white) may change, 0 (black) stays.

Whole numbers that are 0 and 1 only are those, whatever their type. Else uint8 and pictures of 8 bits run to 255,
pictures of 16 bits to 65535; other numbers lie in [0, 1]. What is transparent in a picture stays.
"""

_COLOURED = 32
"""Of 255: how far the channels of a grey picture may be apart, for files that were saved with loss."""


def read_mask(mask: MaskLike, images: int, size: tuple[int, int]) -> Tensor:
    """A mask as float32 [N, 1, H, W] in [0, 1], one an image.

    Args:
        mask: one for all images, or one each.
        images: N.
        size: (height, width) of the pictures.

    Raises:
        InputError: a mask of another size or number, values outside [0, 1], a file that cannot be read, a coloured
            picture, one that is black wherever it is not transparent.
    """
    if isinstance(mask, (list, tuple)):
        return torch.cat([read_mask(m, 1, size) for m in _as_many(mask, images)])
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
    if tuple(x.shape[2:]) != tuple(size):
        raise InputError(
            f"it is {x.shape[3]}x{x.shape[2]}, the picture {size[1]}x{size[0]}; give a mask of the same size.",
            parameter="mask",
        )
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError(
            f"its values run from {float(x.min()):g} to {float(x.max()):g}; 0 must stay, 1 may change.",
            parameter="mask",
        )
    return x.expand(images, -1, -1, -1)


def _as_many(masks: Sequence[MaskLike], images: int) -> Sequence[MaskLike]:
    if len(masks) != images:
        raise InputError(
            f"{len(masks)} were given for {images} images; give one for all, or one each.", parameter="mask"
        )
    return masks


def _from_file(mask: MaskLike) -> Tensor:
    image = open_image(Path(mask), "mask") if isinstance(mask, (str, os.PathLike)) else mask
    if not hasattr(image, "getbands"):
        raise InputError(
            f"{type(image).__name__} is not a mask; give a path, a PIL image or a tensor.", parameter="mask"
        )
    return _from_pil(image)


def _from_pil(image: Any) -> Tensor:
    """The values of a picture [H, W]: floats as they are, 0 and 1 as they are, else its greys as uint8."""
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
            "it is black wherever it is not transparent, and both stay; paint what may change white.", parameter="mask"
        )
    return torch.from_numpy(np.asarray(shown.convert("L")).copy())


def to_latent(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A picture's mask [N, 1, H, W] on the latent: the part of each latent pixel's square that may change."""
    return adaptive_avg_pool2d(mask, (size[0], size[1]))


def from_maps(maps: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Where words lie, of source or target (section 3.2 of Hertz et al. 2022, "Local Editing").

    Args:
        maps: [N, K, 2, h, w], the words' cross maps of source and target, summed over the steps so far.
        size: (H, W) of the latent.
        threshold: against each map's maximum.

    Returns:
        [N, K, H, W] of 0 and 1: the union of both.
    """
    n, k = maps.shape[:2]
    spread = interpolate(max_pool2d(maps.flatten(0, 1), 3, stride=1, padding=1), size)
    top = spread.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(spread.dtype).tiny)
    return (spread / top > threshold).any(1).to(maps).unflatten(0, (n, k))


def blended(x: Tensor, mask: Tensor) -> Tensor:
    """x_target = x_source + mask (x_target - x_source), the source's rows untouched.

    Args:
        x: [N (1 + K), C, H, W], each image's source before its targets; floats, or a lattice's integers.
        mask: [N, K or 1, H, W].
    """
    rows = x.unflatten(0, (len(mask), -1))
    source, targets = rows[:, :1], rows[:, 1:]
    weight = mask[:, :, None].to(x if x.is_floating_point() else torch.float64)
    weight = weight.expand(*targets.shape[:2], 1, *mask.shape[2:])
    if not x.is_floating_point():
        moved = source + ((targets - source) * weight).round().to(x.dtype)
        return torch.cat([source, moved], 1).flatten(0, 1)
    # lerp, because it is exact at 0 and at 1
    return torch.cat([source, torch.lerp(source.expand_as(targets), targets, weight)], 1).flatten(0, 1)
