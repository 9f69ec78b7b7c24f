"""Seeded noise with one generator per sample, so that a sample does not depend on the batch it is in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole


class SeededNoise:
    """Draws standard normal numbers, with a separate seed for each sample.

    The numbers are drawn on the CPU in float32 and then converted, so that they do not depend on the device or dtype.

    Args:
        seeds: one seed for each sample.

    Raises:
        InputError: a seed is not a whole number from 0 to 2^63 - 1.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(checked_seed(s)) for s in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """Returns new numbers in the shape, dtype and device of ``like``, [N, ...], where N is the number of seeds."""
        if len(like) != len(self._generators):
            raise InputError(f"{len(self._generators)} were given for {len(like)} samples.", parameter="seed")
        draws = torch.stack([torch.randn(like.shape[1:], generator=g) for g in self._generators])
        if like.is_cuda:  # a copy from pinned memory does not make the host wait for the GPU
            draws = draws.pin_memory()
        return draws.to(like.device, non_blocking=True).to(like.dtype)


def checked_seed(seed: int, count: int = 1) -> int:
    """Returns the seed as an int. Raises InputError if ``seed``, ..., ``seed + count - 1`` are not all valid seeds."""
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise InputError(f"{seed} is not a whole number from 0 to 2^63 - 1.", parameter="seed")
    if seed + count > 2**63:
        raise InputError(f"{seed} leaves no room for {count} seeds below 2^63.", parameter="seed")
    return int(seed)
