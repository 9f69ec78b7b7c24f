"""Runs sources together with their targets, in batches."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..core.conditioning import CONTENT, Conditioning
from ..core.contracts import OnStep
from .events import ImagesEvent, OnEvent
from .phases import Phases

Made = tuple[Tensor, Tensor | None]
"""Images [n, 1 + K, C, H, W] in [0, 1], each source before its targets; and where the targets could differ from their
source at the last step, [n, K, h, w], or None without a mask."""


def with_facts(targets: Conditioning, sources: Conditioning, times: int) -> Conditioning:
    """Returns the targets' conditions with what they take from their source, such as its size.

    Args:
        targets: N K rows, of which ``CONTENT`` is kept.
        sources: N rows.
        times: the number of targets K of each source.
    """
    facts = {name: t.repeat_interleave(times, 0) for name, t in sources.tensors.items() if name not in CONTENT}
    chosen = {name: t for name, t in targets.tensors.items() if name in CONTENT}
    return Conditioning({**chosen, **facts}, targets.numbers)


@dataclass(frozen=True, eq=False)
class TargetBatches:
    """The batches of N sources with K targets each.

    Attributes:
        count: the number of sources N.
        many: the number of targets K of each source.
        batch: the largest number of sources and targets in a batch.
        phases: counts the steps.
        on_event: called with an ``ImagesEvent`` after each batch, and with what else happens.
    """

    count: int
    many: int
    batch: int
    phases: Phases
    on_event: OnEvent

    @property
    def chunks(self) -> list[slice]:
        """The sources of each batch: as many as fit with all their targets, and at least one."""
        per = max(1, self.batch // (1 + self.many))
        return [slice(k, min(k + per, self.count)) for k in range(0, self.count, per)]

    def targets_of(self, sources: slice) -> slice:
        """Returns the rows of the targets of some sources, of which each source's are neighbours."""
        return slice(sources.start * self.many, sources.stop * self.many)

    def run(self, steps: int, make: Callable[[slice, OnStep], Made]) -> Made:
        """Makes all images, batch by batch.

        Args:
            steps: the number of steps of a batch.
            make: makes the images of some sources and their targets, and calls its second argument after each step.

        Returns:
            The images of all N sources, and the mask enlarged to the images, [N, K, H, W].
        """
        report = self.phases.sampling(steps * len(self.chunks))
        parts: list[Made] = []
        for sources in self.chunks:
            images, mask = make(sources, report)
            parts.append((images, mask))
            self.on_event(ImagesEvent(sources.start, images))
        whole = torch.cat([images for images, _ in parts])
        masks = [mask for _, mask in parts if mask is not None]
        return whole, interpolate(torch.cat(masks), whole.shape[-2:]) if masks else None
