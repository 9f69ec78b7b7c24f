"""What every adapter reads of a scheduler's config, and how its network is told the time."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.path import GaussianPath, Node
from ..core.prediction import Hold
from .scheduler_config import hold_from, offset_from, path_of, prediction_from, said_by, spacing_from


class Schedule(NamedTuple):
    """See the properties of the same names in ``base.Model``."""

    path: GaussianPath
    prediction: str
    spacing: str
    offset: int
    hold: Hold


def read_schedule(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a diffusers scheduler's config describes.

    Raises:
        InputError: a scheduler, prediction type, spacing or field that is not known; a value of the wrong kind, or one
            that would change results and is not taken.
    """
    said = said_by(config)
    return Schedule(path_of(said), prediction_from(said), spacing_from(said), offset_from(said), hold_from(said))


def timestep(path: GaussianPath, node: Node, device: torch.device) -> Tensor:
    """What the network is told at a node, a scalar; whole labels as int64, since some networks look them up in a table,
    others as float32."""
    told = path.label(node.t)
    return torch.tensor(int(told) if told == int(told) else told, device=device)
