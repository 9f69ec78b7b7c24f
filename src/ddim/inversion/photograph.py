"""The photograph that an image was cropped from, which a code can keep, and its lossless compression."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, cast

import torch
from torch import Tensor

from .._utils.errors import InputError, is_dict, is_whole

Crop = tuple[int, int, int, int]
"""A region of a photograph in pixels: (left, top, right, bottom), where right and bottom lie outside of it."""

MODES = ("L", "LA", "RGB", "RGBA")
"""The kinds of photographs by their number of channels: grey or colour, with or without transparency."""
MOST_PIXELS = 178_956_970
"""The most pixels of a photograph or a sheet: Pillow refuses larger images, since they may be decompression bombs."""
MOST_ICC = 2**24
"""The most bytes that a colour profile may have. A larger one of an image file is dropped, and elsewhere refused."""
_LEVEL = 3  # of zlib: a level of 6 saves 6 % more on photographs, and takes four times as long


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph at its own size, with the crop that is inverted and edited.

    Attributes:
        pixels: uint8 [C, H, W] with the channels of one of ``MODES``, upright.
        crop: the region that was scaled to the model's size.
        icc: the colour profile of its file; empty if it has none.

    Raises:
        InputError: the pixels are no such tensor or more than ``MOST_PIXELS``, the crop lies outside of them, or the
            profile has more than ``MOST_ICC`` bytes. A code file could not be loaded with them.
    """

    pixels: Tensor
    crop: Crop
    icc: bytes = b""

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if self.pixels.dtype != torch.uint8 or len(shape) != 3 or not 1 <= shape[0] <= len(MODES) or 0 in shape:
            raise InputError(
                f"a tensor of shape {shape} and {self.pixels.dtype} is not a photograph; use uint8 [C, H, W].",
                parameter="pixels",
            )
        height, width = self.size
        check_size(height, width, "pixels")
        if len(self.icc) > MOST_ICC:
            raise InputError(
                f"a colour profile of {len(self.icc):,} bytes is too large; the largest has {MOST_ICC:,}.",
                parameter="icc",
            )
        if as_crop(self.crop, height, width) is None:
            raise InputError(
                f"{self.crop!r} is no region of a photograph of {width}x{height}; use (left, top, right, bottom) in "
                "pixels.",
                parameter="crop",
            )

    def __repr__(self) -> str:
        return f"Photograph({self.size[1]}x{self.size[0]}, {self.mode}, crop={self.crop})"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of the crop."""
        left, top, right, bottom = self.crop
        return bottom - top, right - left

    @property
    def mode(self) -> str:
        """One of ``MODES``."""
        return MODES[len(self.pixels) - 1]

    @property
    def colours(self) -> int:
        """The number of channels without transparency: 1 or 3."""
        return 1 if len(self.pixels) < 3 else 3

    @property
    def region(self) -> Tensor:
        """The pixels of the crop, uint8 [C, h, w]; a view."""
        left, top, right, bottom = self.crop
        return self.pixels[:, top:bottom, left:right]


def check_size(height: int, width: int, parameter: str) -> None:
    """Raises InputError if a photograph of this size has more than ``MOST_PIXELS``.

    Args:
        height, width: in pixels.
        parameter: the argument that the error names.
    """
    if height * width > MOST_PIXELS:
        raise InputError(
            f"a photograph of {width:,} x {height:,} pixels is too large; the largest has {MOST_PIXELS:,} pixels.",
            parameter=parameter,
        )


def packed(photograph: Photograph) -> tuple[dict[str, Any], Tensor]:
    """Compresses a photograph without loss.

    Each row is stored as its difference from the row above, and red and blue as their difference from green (modulo
    256); zlib compresses these bytes. On photographs this is about as small as a PNG file.

    Returns:
        What ``unpacked`` needs to know, as JSON, and the compressed bytes, uint8 [M].
    """
    x = photograph.pixels.detach().cpu().clone()
    if photograph.colours == 3:
        x[0::2] -= x[1]
    x[:, 1:] -= x[:, :-1].clone()
    data = zlib.compress(x.numpy().tobytes(), _LEVEL)
    about = {"shape": list(photograph.pixels.shape), "crop": list(photograph.crop)}
    return about, torch.frombuffer(bytearray(data), dtype=torch.uint8)


def unpacked(about: dict[str, Any], data: Tensor, icc: bytes = b"") -> Photograph | None:
    """Restores what ``packed`` compressed. Returns None if the bytes are damaged or of another size.

    Args:
        about, data: the results of ``packed``; ``is_packed(about)`` holds.
        icc: the colour profile.
    """
    channels, height, width = shape = about["shape"]
    size = channels * height * width
    stream = zlib.decompressobj()
    try:  # it never makes more bytes than the shape says, whatever the data claim
        content = stream.decompress(data.numpy().tobytes(), size)
        rest = stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error:
        return None
    if len(content) != size or rest or not stream.eof or stream.unused_data:
        return None
    x = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)
    torch.cumsum(x, 1, dtype=torch.uint8, out=x)
    if channels > 2:
        x[0::2] += x[1]
    left, top, right, bottom = about["crop"]
    return Photograph(x, (left, top, right, bottom), icc)


def is_packed(about: Any) -> bool:
    """Whether a value from a file describes a photograph as ``packed`` does."""
    if not is_dict(about) or set(about) != {"shape", "crop"}:
        return False
    shape = _wholes(about["shape"], 3)
    if shape is None or min(shape) < 1 or shape[0] > len(MODES) or shape[1] * shape[2] > MOST_PIXELS:
        return False
    return as_crop(about["crop"], shape[1], shape[2]) is not None


def as_crop(value: Any, height: int, width: int) -> Crop | None:
    """Returns a value as a crop, or None if it is no region of a photograph of this size."""
    numbers = _wholes(value, 4)
    if numbers is None:
        return None
    left, top, right, bottom = numbers
    return (left, top, right, bottom) if 0 <= left < right <= width and 0 <= top < bottom <= height else None


def _wholes(value: Any, count: int) -> list[int] | None:
    """Returns a list or tuple of this many whole numbers as Python's; None for any other value."""
    if not isinstance(value, (list, tuple)) or len(cast("Sequence[Any]", value)) != count:
        return None
    numbers = cast("Sequence[Any]", value)
    return [index(n) for n in numbers] if all(map(is_whole, numbers)) else None
