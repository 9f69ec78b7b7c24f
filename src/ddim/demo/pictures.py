"""Tensors as pictures, and the errors between them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

import ddim

from ..data.images import MOST_PIXELS
from ..evaluation.metrics import mse

if TYPE_CHECKING:
    from PIL.Image import Image

AMPLIFIED = 8
"""The factor by which a difference is multiplied before it is shown."""


def tiles(images: Tensor, columns: int, *, scale: int = 4, gap: int = 4) -> "Image":
    """Images on one sheet with transparent gaps, for a page that may be light or dark.

    Args:
        images: [N, C, H, W] in [0, 1], laid out row by row.
        columns: images per row.
        scale: the width of a pixel of an image on the sheet. A smaller one is used if the sheet would have more than
            ``MOST_PIXELS`` pixels.
        gap: pixels between images, after scaling.
    """
    from PIL import Image

    n, channels, h, w = images.shape
    while scale > 1 and -(-n // columns) * columns * (h * scale + gap) * (w * scale + gap) > MOST_PIXELS:
        scale -= 1
    h, w, rows = h * scale, w * scale, -(-n // columns)
    mode = "LA" if channels == 1 else "RGBA"
    page = Image.new(mode, (columns * (w + gap) - gap, rows * (h + gap) - gap), (0,) * len(mode))
    for k in range(n):
        tile = ddim.to_pil(images[k]).resize((w, h), Image.Resampling.NEAREST).convert(mode)
        page.paste(tile, ((k % columns) * (w + gap), (k // columns) * (h + gap)))
    return page


def latent(x: Tensor) -> Tensor:
    """Standard normal numbers as grey values: -3 is black and 3 is white."""
    return (x.float().cpu() / 6 + 0.5).clamp(0, 1)


def difference(images: Tensor, others: Tensor) -> Tensor:
    """The absolute difference times ``AMPLIFIED``; equal pixels are black."""
    return ((images.cpu() - others.cpu()).abs() * AMPLIFIED).clamp(0, 1)


def same_as_png(images: Tensor, others: Tensor) -> int:
    """How many of the pairs are identical after rounding to 8 bits."""
    pairs = zip(images, others, strict=True)
    return sum(ddim.to_pil(a).tobytes() == ddim.to_pil(b).tobytes() for a, b in pairs)


def mean_mse(images: Tensor, others: Tensor) -> float:
    """The mean squared error over all pairs of images."""
    each = mse(images.cpu(), others.cpu()).tolist()
    return sum(each) / len(each)


def span(values: Sequence[int]) -> str:
    """The range of consecutive numbers, such as ``0–7``."""
    return str(values[0]) if len(values) == 1 else f"{values[0]}–{values[-1]}"
