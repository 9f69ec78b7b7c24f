"""Retrieval: which image of a gallery is nearest to a given one.

The embedding is made for small drawings and needs no weights. It has two halves: colours averaged over an 8x8 grid, and
histograms of gradient directions over the same grid (Dalal & Triggs 2005). Each half is centred on the gallery and
scaled to length 1. With colours alone a red heart is nearest to a red apple, with gradients alone a yellow face to a
moon.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._utils.errors import InputError

CELLS, DIRECTIONS = 8, 8


class Gallery:
    """A set of named images to search.

    Args:
        images: [M, 3, H, W] in [0, 1], with sides that are multiples of 16.
        names: one for each image.
        parts: turns images into parts of their embedding, each [M, D]. Each part is centred and scaled to length 1
            before they are joined.

    Raises:
        InputError: there are fewer than two images, or another number of names.
    """

    def __init__(
        self, images: Tensor, names: Sequence[str], parts: Callable[[Tensor], Sequence[Tensor]] | None = None
    ) -> None:
        if len(images) != len(names) or len(names) < 2:
            raise InputError(f"A gallery needs at least two images, each with a name; there are {len(names)} names.")
        self.names = list(names)
        self.parts = parts or colours_and_directions
        vectors = self.parts(images)
        self.means = [part.mean(0) for part in vectors]
        self.vectors = self._joined(vectors)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        centred = [F.normalize(part - mean, dim=1) for part, mean in zip(parts, self.means, strict=True)]
        return F.normalize(torch.cat(centred, 1), dim=1)

    def rank(self, images: Tensor, names: Sequence[str]) -> list[int]:
        """For each image [N, 3, H, W], the rank of the gallery's image of that name; 1 is the nearest."""
        near = self._joined(self.parts(images)) @ self.vectors.T
        wanted = torch.tensor([self.names.index(name) for name in names])
        own = near.gather(1, wanted[:, None])
        return ((near > own).sum(1) + 1).tolist()


def colours(images: Tensor) -> Tensor:
    """Colours averaged over the grid, [N, 3 * 64]."""
    return F.adaptive_avg_pool2d(images.float(), CELLS).flatten(1)


def directions(images: Tensor) -> Tensor:
    """Square roots of histograms of gradient directions over the grid, weighted by length, [N, 8 * 64].

    The gradients are those of the grey image at half its size, where noise is weaker.
    """
    grey = F.avg_pool2d(images.float(), 2).mean(1, keepdim=True)
    dx = F.pad(grey.diff(dim=-1), (0, 1))
    dy = F.pad(grey.diff(dim=-2), (0, 0, 0, 1))
    angle = torch.atan2(dy, dx) % torch.pi
    which = (angle / torch.pi * DIRECTIONS).floor().clamp(max=DIRECTIONS - 1).long()
    histogram = torch.zeros(len(grey), DIRECTIONS, *grey.shape[2:]).scatter_(1, which, (dx**2 + dy**2).sqrt())
    return F.adaptive_avg_pool2d(histogram, CELLS).sqrt().flatten(1)


def colours_and_directions(images: Tensor) -> list[Tensor]:
    """Both halves of the embedding."""
    return [colours(images), directions(images)]
