"""An exponential moving average of a network's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """average <- d average + (1 - d) weights, after every step, in float32.

    Args:
        network: whose parameters are averaged, in place of which ``swapped`` puts the average.
        decay: d in [0, 1); 0 keeps the last weights.
        warmup: d starts at 0.1 and rises as (1 + step) / (10 + step) up to ``decay``.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool) -> None:
        self.network, self.decay, self.warmup = network, decay, warmup
        self.average = {name: p.detach().clone() for name, p in network.named_parameters()}

    def decay_at(self, step: int) -> float:
        """The decay used after the optimiser's step number ``step`` (from 0)."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights as they are after step ``step``."""
        share = 1 - self.decay_at(step)
        for name, parameter in self.network.named_parameters():
            self.average[name].lerp_(parameter, share)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Continues from a saved ``average``."""
        for name, value in self.average.items():
            value.copy_(average[name])

    @contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """Inside the block the network holds the average; afterwards its own weights again, bit for bit."""
        own = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.copy_(weights[name])
