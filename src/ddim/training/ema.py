"""An exponential moving average of a network's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """The exponential moving average of a network's weights: average <- d average + (1 - d) weights after each step.

    The average is kept in float32 beside the network.

    Args:
        network: the network whose parameters are averaged.
        decay: the decay d in [0, 1); at 0 the average equals the last weights.
        warmup: let d start at 0.1 and rise as (1 + step) / (10 + step) up to ``decay``. With a constant d near 1, the
            random initial weights would stay in the average for thousands of steps.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool) -> None:
        self.network, self.decay, self.warmup = network, decay, warmup
        self.average = {name: p.detach().clone() for name, p in network.named_parameters()}
        self._weights: list[Tensor] = list(network.parameters())

    def decay_at(self, step: int) -> float:
        """Returns the decay after the optimiser's step number ``step``, which counts from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average with the weights after step number ``step``."""
        share = 1 - self.decay_at(step)
        # All weights in a few kernels on a GPU; on a CPU the same as lerp_ for each.
        torch._foreach_lerp_(list(self.average.values()), self._weights, share)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Restores a saved average."""
        for name, value in self.average.items():
            value.copy_(average[name])

    @contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """Inside the block the network has the averaged weights; afterwards its own, restored bit for bit."""
        own = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        """Copies weights into the network."""
        for name, parameter in self.network.named_parameters():
            parameter.copy_(weights[name])
