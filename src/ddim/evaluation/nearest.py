"""Which picture of a gallery an image is nearest to.

The embedding is made for small drawings and needs no weights: colours averaged over an 8x8 grid, and beside them
histograms of gradient directions over the same grid (Dalal & Triggs 2005). Each half is centred on the gallery and
has length 1. Colours alone take a red heart for a red apple, gradients alone a yellow face for a moon.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .._utils.errors import InputError

CELLS, DIRECTIONS = 8, 8


class Gallery:
    """Pictures to be found again.

    Args:
        pictures: [M, 3, H, W] in [0, 1], sides multiples of 16.
        names: one a picture.
        parts: images -> vectors [M, D], each centred and made of length 1 before they are put together.
    """

    def __init__(
        self, pictures: Tensor, names: Sequence[str], parts: Callable[[Tensor], Sequence[Tensor]] | None = None
    ) -> None:
        if len(pictures) != len(names) or len(names) < 2:
            raise InputError(f"A gallery needs two pictures or more, each with a name; {len(names)} names were given.")
        self.names = list(names)
        self.parts = parts or both
        vectors = self.parts(pictures)
        self.means = [part.mean(0) for part in vectors]
        self.vectors = self._joined(vectors)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        centred = [F.normalize(part - mean, dim=1) for part, mean in zip(parts, self.means, strict=True)]
        return F.normalize(torch.cat(centred, 1), dim=1)

    def rank(self, images: Tensor, names: Sequence[str]) -> list[int]:
        """For each image [N, 3, H, W] the place, from 1, of the picture with its name among the nearest."""
        near = self._joined(self.parts(images)) @ self.vectors.T
        wanted = torch.tensor([self.names.index(name) for name in names])
        own = near.gather(1, wanted[:, None])
        return ((near > own).sum(1) + 1).tolist()


def layout(images: Tensor) -> Tensor:
    """Colours over the grid, [N, 3 * 64]."""
    return F.adaptive_avg_pool2d(images.float(), CELLS).flatten(1)


def directions(images: Tensor) -> Tensor:
    """Histograms over the grid, [N, 8 * 64]: gradients of the grey picture at half its size, where noise is weaker, by
    direction and weighted by length; their square roots."""
    grey = F.avg_pool2d(images.float(), 2).mean(1, keepdim=True)
    dx = F.pad(grey.diff(dim=-1), (0, 1))
    dy = F.pad(grey.diff(dim=-2), (0, 0, 0, 1))
    angle = torch.atan2(dy, dx) % torch.pi
    which = (angle / torch.pi * DIRECTIONS).floor().clamp(max=DIRECTIONS - 1).long()
    histogram = torch.zeros(len(grey), DIRECTIONS, *grey.shape[2:]).scatter_(1, which, (dx**2 + dy**2).sqrt())
    return F.adaptive_avg_pool2d(histogram, CELLS).sqrt().flatten(1)


def both(images: Tensor) -> list[Tensor]:
    """Both halves."""
    return [layout(images), directions(images)]
