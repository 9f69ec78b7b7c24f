"""Tensors as pictures for a page that may be light or dark: what lies between the tiles is transparent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..data.images import MOST_PIXELS, to_pil

if TYPE_CHECKING:
    from PIL.Image import Image

AMPLIFIED = 8
"""How many times a difference is shown."""


def tiles(images: Tensor, columns: int, *, scale: int = 4, gap: int = 4) -> "Image":
    """Images [N, C, H, W] in [0, 1], row by row, each pixel ``scale`` wide (less where that would be more than
    ``MOST_PIXELS``), with transparent gaps."""
    from PIL import Image

    n, channels, h, w = images.shape
    while scale > 1 and -(-n // columns) * columns * (h * scale + gap) * (w * scale + gap) > MOST_PIXELS:
        scale -= 1
    h, w, rows = h * scale, w * scale, -(-n // columns)
    mode = "LA" if channels == 1 else "RGBA"
    page = Image.new(mode, (columns * (w + gap) - gap, rows * (h + gap) - gap), (0,) * len(mode))
    for k in range(n):
        tile = to_pil(images[k]).resize((w, h), Image.Resampling.NEAREST).convert(mode)
        page.paste(tile, ((k % columns) * (w + gap), (k // columns) * (h + gap)))
    return page


def latent(x: Tensor) -> Tensor:
    """Standard normal numbers, -3 to 3 shown as black to white."""
    return (x.float().cpu() / 6 + 0.5).clamp(0, 1)


def difference(images: Tensor, others: Tensor) -> Tensor:
    """``AMPLIFIED`` times the absolute difference; black is none."""
    return ((images.cpu() - others.cpu()).abs() * AMPLIFIED).clamp(0, 1)


def same_as_png(images: Tensor, others: Tensor) -> int:
    """How many of the images are the same to the bit once rounded to 8 bits."""
    from ..data.images import to_uint8

    return int((to_uint8(images) == to_uint8(others)).flatten(1).all(1).sum())


def span(values: Sequence[int]) -> str:
    """``0–7`` of a run of seeds."""
    return str(values[0]) if len(values) == 1 else f"{values[0]}–{values[-1]}"
