"""What every adapter reads of a scheduler's config, and how its network is told the time."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..path import GaussianPath, Node, RectifiedFlow, TablePath, from_scheduler_config, spacing_from_config
from ..prediction import prediction_of


class Schedule(NamedTuple):
    """See the properties of the same names in ``base.Model``."""

    path: GaussianPath
    prediction: str
    spacing: str
    offset: int


def read_schedule(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a diffusers scheduler's config describes.

    Raises:
        InputError: a scheduler, prediction type or spacing that is not known.
    """
    path = from_scheduler_config(config)
    usual = "flow_prediction" if isinstance(path, RectifiedFlow) else "epsilon"
    first_entry = isinstance(path, TablePath) and path.data == "first"
    return Schedule(
        path,
        prediction_of(str(config.get("prediction_type", usual))),
        spacing_from_config(config),
        # diffusers' steps_offset counts its timesteps; where data is the table's first entry, 1 is our first level.
        max(int(config.get("steps_offset", 0)) - first_entry, 0),
    )


def timestep(path: GaussianPath, node: Node, device: torch.device) -> Tensor:
    """What the network is told at a node, a scalar; whole labels as int64, since some networks look them up in a table,
    others as float32."""
    told = path.label(node.t)
    return torch.tensor(int(told) if told == int(told) else told, device=device)
