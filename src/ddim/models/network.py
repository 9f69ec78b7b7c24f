"""The model that ``ddim.Model.from_network`` makes from the user's own network."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.errors import InputError, is_range, is_whole
from ..core.conditioning import LABELS, Conditioning
from ..core.denoiser import Call, timestep_tensor
from ..core.path import Node, TablePath
from ..core.schedule import Schedule
from .base import ClassModel, scaled
from .device import device_and_dtype
from .engine.graphs import Graphs
from .engine.optimize import engine_of
from .engine.run import run
from .engine.work import Work
from .fingerprint import fingerprint as fingerprint_of
from .info import ModelInfo


class NetworkModel(ClassModel):
    """A model around the user's own network; see ``Model.from_network`` for the arguments."""

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
        capturable: bool,
    ) -> None:
        if not callable(network):
            raise InputError(f"a {type(network).__name__} cannot be called as network(x, t).", parameter="network")
        if not isinstance(schedule, Schedule):
            raise InputError(
                f"a {type(schedule).__name__} is not a schedule; use ddim.Schedule(path, prediction).",
                parameter="schedule",
            )
        if not _is_shape(shape):
            raise InputError(
                f"{shape!r} is not a shape (channels, height, width) of images, with 1 or 3 channels.",
                parameter="shape",
            )
        if not is_range(values) or not values[0] < values[1]:
            raise InputError(f"{values} is not a range of values; the usual one is (-1, 1).", parameter="range")
        if not is_whole(labels) or labels < 0:
            raise InputError(f"{labels!r} is not a number of classes; use 0 for none.", parameter="labels")
        if null_label is not None and (not labels or not is_whole(null_label) or null_label < 0):
            raise InputError(
                f"{null_label!r} cannot be the label of the null class; it must be a whole number from 0, and needs "
                "labels, the number of classes.",
                parameter="null_label",
            )
        if null_label is not None and null_label < labels:
            raise InputError(
                f"{null_label} is already the label of one of the {labels} classes (labels does not count the null "
                f"class); use {labels} or more, or fewer labels.",
                parameter="null_label",
            )
        if timestep_dtype is not None and not isinstance(timestep_dtype, torch.dtype):
            raise InputError(f"{timestep_dtype!r} is not a dtype such as torch.int64.", parameter="timestep_dtype")
        if capturable and not isinstance(network, nn.Module):
            raise InputError(
                f"only calls of a torch.nn.Module can be recorded, and {type(network).__name__} is none; leave it out.",
                parameter="capturable",
            )
        self.graphs = Graphs(network) if capturable and isinstance(network, nn.Module) else None
        self.network, self.schedule, self.values, self.timestep_dtype = network, schedule, values, timestep_dtype
        parameters = list(network.parameters()) if isinstance(network, nn.Module) else []
        if isinstance(network, nn.Module) and network.training:
            raise InputError("the network is in training mode; call network.eval() first.", parameter="network")
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
        self.threads = False  # the user's network may not be thread-safe
        work = Work.of(network) if isinstance(network, nn.Module) else None
        self.work = work if work and work.known else None

    @property
    def fingerprint(self) -> str:
        """The fingerprint that the user gave, or a hash over a module's current weights; empty for other callables."""
        if self._fingerprint is not None:
            return self._fingerprint
        if not isinstance(self.network, nn.Module):
            return ""
        whole = fingerprint_of(self.network, self.schedule.path, self.schedule.predicts())
        return hashlib.sha256(f"{whole}{self.values}".encode()).hexdigest()

    @property
    def whole_timesteps(self) -> bool:
        """Whether ``timestep_dtype`` is an integer type."""
        return self.timestep_dtype is not None and not self.timestep_dtype.is_floating_point

    @property
    def engine(self) -> str:
        """How the network computes, as far as it changes the last bits of its output; empty if it is no module."""
        if not isinstance(self.network, nn.Module):
            return ""
        return engine_of(self.network, split=False, device=self.device if self.graphs is not None else None)

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """Calls the network once; see ``Model.forward``.

        Raises:
            InputError: the model needs a class label and has none, or the network's output has a wrong shape.
        """
        looked_up = isinstance(self.schedule.path, TablePath)
        t = timestep_tensor(self.schedule.timestep(node), x, looked_up, self.timestep_dtype, "timestep_dtype")
        labels: tuple[Tensor, ...] = ()
        if self.classes:
            if LABELS not in cond:
                raise InputError(f"the model {self.name!r} needs a class label.", parameter="labels")
            labels = (cond.tensors[LABELS],)
        # The batch is not split. A layout still fixes the number of threads that torch uses, and so the last bits of
        # the output.
        work, inputs = self.row_work(x.shape[1:]), (scaled(x, self.schedule, node).to(self.dtype), t, *labels)
        output = run(self._checked, *inputs, call=call, graphs=self.graphs, tf32=self.tf32, row_work=work, split=False)
        return output.to(x.dtype)

    def _checked(self, x: Tensor, *inputs: Tensor) -> Tensor:
        """Calls the network. Raises InputError if its output is not a tensor of x's shape."""
        output: Any = self.network(x, *inputs)
        output = getattr(output, "sample", output)  # diffusers' networks return an object with this attribute
        if not isinstance(output, Tensor) or output.shape != x.shape:
            what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise InputError(f"it returned {what} for x of shape {tuple(x.shape)}.", parameter="network")
        return output

    def encode(self, images: Tensor) -> Tensor:
        """Scales images [N, C, H, W] from [0, 1] to the network's range of values."""
        low, high = self.values
        return images.to(device=self.device, dtype=self.state_dtype) * (high - low) + low

    def decode(self, x0: Tensor) -> Tensor:
        """Scales x0 from the network's range to images in [0, 1], and clips values outside."""
        low, high = self.values
        return ((x0 - low) / (high - low)).clamp(0, 1)


def _is_shape(shape: Any) -> bool:
    """Whether a value is a shape (C, H, W) of images with 1 or 3 channels."""
    three = isinstance(shape, (tuple, list)) and len(shape) == 3
    return three and all(is_whole(n) and n > 0 for n in shape) and shape[0] in (1, 3)
