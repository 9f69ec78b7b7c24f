"""Every random number of a run, as a function of (seed, step, place in the batch) and nothing else.

Philox is a counter-based generator (Salmon et al. 2011): its counter is set to where we are, so no state has to be
saved, and neither the number of processes nor of micro-batches changes what is drawn.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ORDER, _TIMES, _IMAGE, _NETWORK, _SHEET, _CHANCE = range(6)


def _generator(seed: int, stream: int, step: int, place: int = 0) -> np.random.Generator:
    # The lowest of the four counter words is left to the generator itself: it counts the numbers drawn.
    counter = np.array([0, place, step, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, 0], dtype=np.uint64)))


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The permutation of 0..count-1 in which an epoch visits the images; int64, shape [count]."""
    return _generator(seed, _ORDER, epoch).permutation(count)


def times(seed: int, step: int, batch: int, levels: int, kind: str) -> Tensor:
    """t in 1..levels for every place of a step's whole batch; int64, shape [batch].

    ``uniform`` draws each alone; ``stratified`` draws place p from the p-th of ``batch`` equal strata, which keeps
    each t as likely and makes the loss of a batch vary less.
    """
    u = _generator(seed, _TIMES, step).random(batch)
    if kind == "stratified":
        u = (np.arange(batch) + u) / batch
    return torch.from_numpy(np.minimum((u * levels).astype(np.int64), levels - 1) + 1)


def flips_and_noise(seed: int, step: int, places: Sequence[int], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """For each place of the batch whether its image is mirrored, and its noise.

    Returns:
        bool of shape [len(places)], and N(0, 1) float32 of shape [len(places), *shape].
    """
    flips = np.empty(len(places), dtype=bool)
    noise = np.empty((len(places), *shape), dtype=np.float32)
    for row, place in enumerate(places):
        generator = _generator(seed, _IMAGE, step, place)
        flips[row] = generator.random() < 0.5
        generator.standard_normal(out=noise[row], dtype=np.float32)
    return torch.from_numpy(flips), torch.from_numpy(noise)


def chances(seed: int, step: int, places: Sequence[int]) -> Tensor:
    """A number in [0, 1) for each place of the batch (is its prompt left out?); float64 of shape [len(places)]."""
    return torch.tensor([_generator(seed, _CHANCE, step, place).random() for place in places], dtype=torch.float64)


def network_seed(seed: int, step: int, micro: int, process: int) -> int:
    """The seed of torch's global generator for one forward pass (dropout)."""
    return int(_generator(seed, _NETWORK, step, micro * 2**32 + process).integers(2**63))


def sheet_noise(seed: int, count: int, shape: Sequence[int]) -> Tensor:
    """The start of a sample sheet: the same for every sheet of a run; float32 [count, *shape]."""
    noise = _generator(seed, _SHEET, 0).standard_normal((count, *shape), dtype=np.float32)
    return torch.from_numpy(noise)
