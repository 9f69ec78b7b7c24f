"""Seeded noise: one generator a sample, so that a sample never depends on the batch it came in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole


class SeededNoise:
    """Standard normal numbers, the i-th sample's from its own seed.

    Drawn on the CPU in float32 and then moved, so that the numbers do not depend on the device or the dtype.

    Args:
        seeds: one a sample.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(checked_seed(s)) for s in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """New numbers of the shape, dtype and device of ``like``, [N, ...] with N the number of seeds."""
        if len(like) != len(self._generators):
            raise InputError(f"{len(self._generators)} were given for {len(like)} samples.", parameter="seed")
        draws = [torch.randn(like.shape[1:], generator=g) for g in self._generators]
        return torch.stack(draws).to(device=like.device, dtype=like.dtype)


def checked_seed(seed: int, count: int = 1) -> int:
    """A seed from which ``count`` are taken on; raises InputError where one of them is none."""
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise InputError(f"{seed} is not a whole number from 0 to 2^63 - 1.", parameter="seed")
    if seed + count > 2**63:
        raise InputError(f"{seed} leaves no room for {count} seeds below 2^63.", parameter="seed")
    return int(seed)
