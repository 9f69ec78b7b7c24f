"""A network of one's own as a model: what ``ddim.Model.from_network`` makes."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.errors import InputError, is_range, is_whole
from ..core.conditioning import LABELS, Conditioning
from ..core.denoiser import Call
from ..core.denoiser import told as timesteps
from ..core.path import Node, TablePath
from ..core.schedule import Schedule
from .base import ClassModel
from .device import device_and_dtype
from .engine.optimize import engine_of
from .engine.threads import run_in_threads
from .fingerprint import fingerprint as fingerprint_of
from .info import ModelInfo


class NetworkModel(ClassModel):
    """See ``Model.from_network``."""

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        *,
        shape: tuple[int, int, int],
        values: tuple[float, float],
        labels: int,
        null_label: int | None,
        timestep_dtype: torch.dtype | None,
        name: str,
        fingerprint: str | None,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
    ) -> None:
        if not callable(network):
            raise InputError(f"a {type(network).__name__} cannot be called as network(x, t).", parameter="network")
        if not isinstance(schedule, Schedule):
            raise InputError(
                f"a {type(schedule).__name__} is no schedule; give ddim.Schedule(path, prediction).",
                parameter="schedule",
            )
        if not _is_shape(shape):
            raise InputError(
                f"{shape!r} is no (channels, height, width) of pictures; channels are 1 or 3.", parameter="shape"
            )
        if not is_range(values) or not values[0] < values[1]:
            raise InputError(f"{values} is no range; (-1, 1) is usual.", parameter="range")
        if not is_whole(labels) or labels < 0:
            raise InputError(f"{labels!r} is not a number of classes; 0 is none.", parameter="labels")
        if null_label is not None and (not labels or not is_whole(null_label) or null_label < 0):
            raise InputError(
                f"{null_label!r} is not the label of no class; it goes with labels, the number of classes.",
                parameter="null_label",
            )
        if null_label is not None and null_label < labels:
            raise InputError(
                f"{null_label} is one of the {labels} classes, which labels counts without the null class; use "
                f"{labels} or more, or fewer labels.",
                parameter="null_label",
            )
        if timestep_dtype is not None and not isinstance(timestep_dtype, torch.dtype):
            raise InputError(f"{timestep_dtype!r} is no dtype; torch.int64 is one.", parameter="timestep_dtype")
        self.network, self.schedule, self.values, self.timestep_dtype = network, schedule, values, timestep_dtype
        parameters = list(network.parameters()) if isinstance(network, nn.Module) else []
        if isinstance(network, nn.Module) and network.training:
            raise InputError("the network is in training; call network.eval() first.", parameter="network")
        first = parameters[0] if parameters else torch.zeros(())
        floats = first.dtype if first.dtype.is_floating_point else torch.float32
        where, what = device_and_dtype(device or first.device, dtype or floats)
        self.info = ModelInfo(
            name=name,
            family="own network",
            shape=(int(shape[0]), int(shape[1]), int(shape[2])),
            picture=(int(shape[0]), int(shape[1]), int(shape[2])),
            parameters=sum(p.numel() for p in parameters),
            dtype=what,
            device=where,
            classes=int(labels),
            null_class=null_label,
        )
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """As it was given; else over a module's weights as they are now, and empty for another callable."""
        if self._fingerprint is not None:
            return self._fingerprint
        if not isinstance(self.network, nn.Module):
            return ""
        whole = fingerprint_of(self.network, self.schedule.path, self.schedule.prediction)
        clock = "" if self.schedule.clock == "path" else self.schedule.clock
        return hashlib.sha256(f"{whole}{self.values}{clock}".encode()).hexdigest()

    @property
    def engine(self) -> str:
        """See ``Model``."""
        return engine_of(self.network, cut=False) if isinstance(self.network, nn.Module) else ""

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """See ``Model``."""
        looked_up = isinstance(self.schedule.path, TablePath)
        t = timesteps(self.schedule.timestep(node), x, looked_up, self.timestep_dtype, "timestep_dtype")
        labels: tuple[Tensor, ...] = ()
        if self.classes:
            if LABELS not in cond:
                raise InputError(f"the model {self.name!r} needs a class.", parameter="labels")
            labels = (cond.tensors[LABELS],)
        # In one piece, since it need not bear several threads at once; a layout still says how many threads torch has.
        return run_in_threads(self._asked, x.to(self.dtype), t, *labels, least=None, layout=call.layout).to(x.dtype)

    def _asked(self, x: Tensor, *told: Tensor) -> Tensor:
        """What the network answers. Raises InputError for what is no tensor of x's shape."""
        output: Any = self.network(x, *told)
        output = getattr(output, "sample", output)
        if not isinstance(output, Tensor) or output.shape != x.shape:
            said = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise InputError(f"it answered {said} to x of shape {tuple(x.shape)}.", parameter="network")
        return output

    def encode(self, images: Tensor) -> Tensor:
        """[0, 1] to the network's range."""
        low, high = self.values
        return images.to(device=self.device, dtype=self.state_dtype) * (high - low) + low

    def decode(self, x0: Tensor) -> Tensor:
        """The network's range to [0, 1], what lies outside cut."""
        low, high = self.values
        return ((x0 - low) / (high - low)).clamp(0, 1)


def _is_shape(shape: Any) -> bool:
    """Whether it is (C, H, W) of pictures."""
    several = isinstance(shape, (tuple, list)) and len(shape) == 3
    return several and all(is_whole(n) and n > 0 for n in shape) and shape[0] in (1, 3)
