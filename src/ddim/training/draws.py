"""The random numbers of a training run. Each is a function of the seed, the step and the position in the batch only.

Philox is a counter-based generator (Salmon et al. 2011): its counter is set directly to the step and the position. So
checkpoints need no generator state, and the numbers do not depend on how many processes or micro-batches there are.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ORDER, _TIMES, _IMAGE, _NETWORK, _SHEET, _CHANCE = range(6)  # one stream of numbers for each purpose


def _generator(seed: int, stream: int, step: int, position: int = 0) -> np.random.Generator:
    """Returns the generator for one purpose, step and position in the batch."""
    # The generator itself uses the lowest of the four counter words to count the numbers drawn.
    counter = np.array([0, position, step, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, 0], dtype=np.uint64)))


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Draws the order in which an epoch visits the images: a permutation of 0..count-1, int64 [count]."""
    return _generator(seed, _ORDER, epoch).permutation(count)


def times(seed: int, step: int, batch: int, levels: int, kind: str) -> Tensor:
    """Draws the noise levels t in 1..levels for the whole batch of a step, over all processes: int64 [batch].

    ``uniform`` draws each t independently. ``stratified`` draws the t at position p from the p-th of ``batch`` equal
    intervals: every t stays equally likely, but the loss of a batch varies less.
    """
    u = _generator(seed, _TIMES, step).random(batch)
    if kind == "stratified":
        u = (np.arange(batch) + u) / batch
    return torch.from_numpy(np.minimum((u * levels).astype(np.int64), levels - 1) + 1)


def logit_normal(seed: int, step: int, batch: int) -> Tensor:
    """Draws the noise levels of rectified flow for the whole batch of a step: float64 [batch], in [0, 1).

    The logit of a level is normal with mean 0 and variance 1 (Esser et al. 2024, arXiv 2403.03206, section 3.1). The
    draws are stratified as in ``times``: the level at position p is the quantile of a number in the p-th of ``batch``
    equal intervals.
    """
    u = (np.arange(batch) + _generator(seed, _TIMES, step).random(batch)) / batch
    return torch.sigmoid(torch.special.ndtri(torch.from_numpy(u)))


def flips_and_noise(seed: int, step: int, positions: Sequence[int], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Draws, for each of the given positions in the batch, whether its image is mirrored, and its noise.

    Returns:
        bool [len(positions)], and N(0, 1) float32 [len(positions), *shape].
    """
    flips = np.empty(len(positions), dtype=bool)
    noise = np.empty((len(positions), *shape), dtype=np.float32)
    for row, position in enumerate(positions):
        generator = _generator(seed, _IMAGE, step, position)
        flips[row] = generator.random() < 0.5
        generator.standard_normal(out=noise[row], dtype=np.float32)
    return torch.from_numpy(flips), torch.from_numpy(noise)


def chances(seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """Draws a uniform number in [0, 1) for each position, such as for label dropout: float64 [len(positions)]."""
    numbers = [_generator(seed, _CHANCE, step, position).random() for position in positions]
    return torch.tensor(numbers, dtype=torch.float64)


def network_seed(seed: int, step: int, micro: int, process: int) -> int:
    """Returns the seed of torch's global generator for one forward pass, which dropout uses."""
    return int(_generator(seed, _NETWORK, step, micro * 2**32 + process).integers(2**63))


def sheet_noise(seed: int, count: int, shape: Sequence[int]) -> Tensor:
    """Draws the initial noise of a sample sheet, the same for every sheet of a run: float32 [count, *shape]."""
    noise = _generator(seed, _SHEET, 0).standard_normal((count, *shape), dtype=np.float32)
    return torch.from_numpy(noise)
