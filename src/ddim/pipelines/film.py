"""Puts the edits at several strengths together: each target is edited at every strength."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .events import Event, ImagesEvent, OnEvent


def of_strengths(runs: Sequence[Tensor], sources: int = 0) -> Tensor:
    """Returns [N, sources + K M, ...] from M runs of [N, sources + K, ...]: the strengths of a target are neighbours.

    Args:
        runs: what was made at each of M strengths.
        sources: how many of the leading entries are the sources', which are taken from the first run.
    """
    edits = torch.stack([run[:, sources:] for run in runs], 2).flatten(1, 2)
    return torch.cat([runs[0][:, :sources], edits], 1) if sources else edits


def gathered(on_event: OnEvent, strengths: int) -> OnEvent:
    """Returns a callback that reports the images of a batch once, when they were made at all strengths.

    Args:
        on_event: the callback to report to.
        strengths: the number of strengths M.
    """
    made: dict[int, list[Tensor]] = {}

    def report(event: Event) -> None:
        if isinstance(event, ImagesEvent):
            runs = made.setdefault(event.first, [])
            runs.append(event.images)
            if len(runs) < strengths:
                return
            event = ImagesEvent(event.first, of_strengths(made.pop(event.first), sources=1))
        on_event(event)

    return report
