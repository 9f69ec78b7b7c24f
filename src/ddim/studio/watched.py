"""A model that shows what its network predicts while it works."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.conditioning import Conditioning
from ..core.denoiser import PLAIN, Call
from ..core.path import Node
from ..core.prediction import to_pair
from ..models.counted import Counted


class Asked(NamedTuple):
    """The last row of a network call: its sample, its node and its output, [1, ...] each."""

    x: Tensor
    node: Node
    output: Tensor


class Watched(Counted):
    """Counts network calls, and keeps the last prediction for a preview. The numbers are those of the wrapped model."""

    _last: Asked | None = None
    _record: list[Asked] | None = None

    def ask(self, x: Tensor, node: Node, /, *conditionings: Conditioning, call: Call = PLAIN) -> Sequence[Tensor]:
        """Asks the wrapped model. The last row is that of the last target, under its own prompt."""
        outputs = super().ask(x, node, *conditionings, call=call)
        self._last = Asked(x[-1:].detach().clone(), node, outputs[-1][-1:].detach().clone())
        if self._record is not None:
            self._record.append(self._last)
        return outputs

    def peek(self) -> Tensor | None:
        """Decodes the image that the network predicted last, [C, H, W] in [0, 1]; None before its first call."""
        if self._last is None:
            return None
        x, node, output = self._last
        with torch.no_grad():
            pair = to_pair(self.schedule.prediction, output, x, node, sigma_data=self.schedule.sigma_data)
            if not bool(torch.isfinite(pair.x0).all()):
                return None
            hold = self.schedule.hold
            return self.model.decode((hold(pair, x, node) if hold.acts else pair).x0)[0].cpu()

    def forget(self) -> None:
        """Forgets the last prediction and the number of calls, for the next job."""
        self._last, self._record, self.evaluations = None, None, 0

    def record(self) -> None:
        """Keeps every call from now on, until ``recorded``."""
        self._record = []

    def recorded(self) -> list[Asked]:
        """Returns the calls since ``record``, and keeps no more."""
        found, self._record = self._record or [], None
        return found
