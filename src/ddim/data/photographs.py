"""Photographs of any size: reads their bytes, chooses a crop of them, and scales it to the size of a model."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._utils.errors import InputError
from ..inversion.photograph import MOST_ICC, Crop, Photograph, as_crop, check_size
from .images import ImageLike, bytes_from_tensor, flatten, opened, scaled_from_pil, to_pil

CropLike = Any
"""``(left, top, right, bottom)`` in pixels, ``"whole"``, or a list with one of these for each photograph."""

WHOLE = "whole"
MOST_TIMES = 4
"""An image of more than this many times the pixels of the model is a photograph of which a crop is taken, even where
the model takes images of any size."""
MARGIN = 0.25
"""The space around a mask in its crop, on each side, as a part of the mask's longer side."""
_SAME_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # of other modes the colours are converted
_ALIKE = 0.05  # crops whose aspect ratio differs by less from the model's get the model's own size


def read_photographs(source: ImageLike) -> list[tuple[Tensor, bytes]]:
    """Reads images as bytes at their own size.

    EXIF orientation is applied. Transparency and the colour profile are kept, and other metadata is dropped. Images of
    16 bits become 8 bits, and other colours (CMYK, LAB) become RGB without a profile.

    Args:
        source: a path, a PIL image, a tensor in [0, 1] or of uint8, or a list of these.

    Returns:
        for each image its pixels, uint8 [C, H, W], and its colour profile, which may be empty.

    Raises:
        InputError: a file is missing or damaged, a tensor is no image, values lie outside [0, 1], or an image has more
            than ``MOST_PIXELS``.
    """
    if isinstance(source, (list, tuple)):
        if not source:
            raise InputError("the list is empty.", parameter="images")
        return [read for one in source for read in read_photographs(one)]
    if isinstance(source, Tensor):
        stack = bytes_from_tensor(source)
        check_size(stack.shape[2], stack.shape[3], "images")
        return [(pixels, b"") for pixels in stack]
    image, name = opened(source)
    check_size(image.height, image.width, "images")
    profile: Any = image.info.get("icc_profile")
    grey = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
    if image.has_transparency_data and not image.mode.startswith("I"):
        flatten(image, "RGB", name=name)  # raises where it cannot be read or converted
        pixels = np.asarray(image.convert("RGBA"))
        pixels = pixels[..., [0, 3]] if grey else pixels
    else:
        pixels = np.asarray(flatten(image, "L" if grey else "RGB", name=name))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    kept = isinstance(profile, bytes) and image.mode in _SAME_COLOURS and len(profile) <= MOST_ICC
    return [(torch.from_numpy(pixels.transpose(2, 0, 1).copy()), profile if kept else b"")]


def takes(size: tuple[int, int], shape: Sequence[int], multiple: int) -> bool:
    """Whether a model takes an image of (height, width) ``size`` as it is, and it has not far more pixels than usual.

    Args:
        size: of the image.
        shape, multiple: as for ``read_images``.
    """
    if not multiple:
        return size == (shape[1], shape[2])
    many = size[0] * size[1] > MOST_TIMES * shape[1] * shape[2]
    return not many and all(side % multiple == 0 for side in size)


def is_taken_whole(photographs: Sequence[Photograph], shape: Sequence[int], multiple: int) -> bool:
    """Whether all photographs are whole and of one size that the model takes."""
    sizes = {photograph.size for photograph in photographs} | {photograph.crop_size for photograph in photographs}
    return len(sizes) == 1 and takes(photographs[0].size, shape, multiple)


def window(size: tuple[int, int], shape: Sequence[int], around: Crop | None = None) -> Crop:
    """Chooses a crop with the aspect ratio of a model.

    Without ``around`` it is the largest one at the centre. With it, it is the smallest one around this region with a
    margin of ``MARGIN`` on each side, and not smaller than the model's images; near a border it is moved, and if the
    photograph is too small it becomes smaller. It contains the whole region, even if that needs another aspect ratio.

    Args:
        size: (height, width) of the photograph.
        shape: (C, H, W) of the model's images.
        around: the bounding box of a mask.
    """
    (height, width), (_, high, wide) = size, shape
    largest = min(height / high, width / wide)
    if around is None:
        scale, left, top, right, bottom = largest, 0, 0, width, height
    else:
        left, top, right, bottom = around
        margin = 2 * MARGIN * max(right - left, bottom - top)
        scale = min(max((right - left + margin) / wide, (bottom - top + margin) / high, 1.0), largest)
    spans: list[tuple[int, int]] = []
    for low, end, side, most in ((left, right, wide, width), (top, bottom, high, height)):
        long = min(max(round(side * scale), 1), most)
        long = long if around is None else max(long, end - low)
        begin = min(max((low + end - long) // 2, 0), most - long)
        spans.append((begin, begin + long))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def checked_crops(crop: CropLike, sizes: Sequence[tuple[int, int]]) -> list[Crop]:
    """Reads the crops that a user chose.

    Args:
        crop: one crop for all photographs, or a list with one for each.
        sizes: (height, width) of each photograph.

    Raises:
        InputError: it is no crop, reaches beyond a photograph, or another number is given.
    """
    many = isinstance(crop, (list, tuple)) and bool(crop) and all(isinstance(one, (list, tuple, str)) for one in crop)
    crops: list[Any] = list(crop) if many else [crop] * len(sizes)
    if len(crops) != len(sizes):
        raise InputError(
            f"{len(crops)} were given for {len(sizes)} images; give one for all, or one each.", parameter="crop"
        )
    return [_checked_crop(one, size) for one, size in zip(crops, sizes, strict=True)]


def _checked_crop(crop: Any, size: tuple[int, int]) -> Crop:
    height, width = size
    if isinstance(crop, str) and crop == WHOLE:
        return 0, 0, width, height
    if (checked := as_crop(crop, height, width)) is not None:
        return checked
    raise InputError(
        f"{crop!r} is no region of a photograph of {width}x{height}; give (left, top, right, bottom) in pixels, or "
        f"{WHOLE!r}.",
        parameter="crop",
    )


def scaled_size(photograph: Photograph, shape: Sequence[int], multiple: int) -> tuple[int, int]:
    """The (height, width) to which a model's crop of a photograph is scaled.

    It is that of the model's images. For a model of any size, a crop of another aspect ratio keeps that, with about as
    many pixels as the model's images.

    Args:
        photograph: the photograph and its crop.
        shape, multiple: as for ``read_images``.
    """
    (height, width), (high, wide) = photograph.crop_size, (shape[1], shape[2])
    if not multiple:
        return high, wide
    if abs(math.log(width * high / (height * wide))) < _ALIKE:
        return high, wide
    scale = math.sqrt(high * wide / (height * width))
    return _nearest(height * scale, multiple), _nearest(width * scale, multiple)


def _nearest(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)


def scaled_crops(photographs: Sequence[Photograph], shape: Sequence[int], multiple: int) -> Tensor:
    """Scales the crops of photographs to the size of a model, on white where they are transparent (Lanczos).

    Whole photographs of one size that the model takes are not scaled.

    Args:
        photographs: with their crops.
        shape, multiple: as for ``read_images``.

    Returns:
        float32 [N, C, H, W] in [0, 1].

    Raises:
        InputError: the crops of a model of any size have different aspect ratios.
    """
    if is_taken_whole(photographs, shape, multiple):
        sizes = [photograph.size for photograph in photographs]
    else:
        sizes = [scaled_size(photograph, shape, multiple) for photograph in photographs]
    if other := next((size for size in sizes if size != sizes[0]), None):
        (h, w), (a, b) = sizes[0], other
        raise InputError(
            f"the crops have different aspect ratios, which need {w}x{h} and {b}x{a} pixels; give crops of one aspect "
            "ratio, or each photograph by itself.",
            parameter="crop",
        )
    return torch.cat([scaled_from_pil(to_pil(one.region), shape[0], sizes[0]) for one in photographs])
