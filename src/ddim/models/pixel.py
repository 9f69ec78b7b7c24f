"""The adapter for pixel models: a UNet2DModel of diffusers with a scheduler config, with or without classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.errors import InputError, is_whole
from ..core.conditioning import LABELS, Conditioning
from ..core.denoiser import Call
from ..core.path import Node
from .about_file import about_file, read_about, usual_guidance
from .base import ClassModel, scalar, scaled
from .device import device_and_dtype
from .dry_run import output_shape
from .engine.graphs import Graphs
from .engine.layout import memory_format
from .engine.optimize import engine_of
from .engine.run import run
from .engine.work import Work
from .fingerprint import fingerprint
from .info import ModelInfo
from .loading import Loading
from .scheduler_config import read_schedule

LAST = "last"
"""Value of ``null_class`` for networks of unknown training: their null class, if they have one, is the last label."""
_LONGEST = 2**14  # the longest side of an image that a config may have; a mistyped one could exhaust the memory


class PixelModel(ClassModel):
    """A pixel diffusion model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    Its network predicts eps, x0, v or F of EDM for images in [-1, 1], or the score of noisy images in [0, 1]: the range
    is that of the pipelines of diffusers.

    Args:
        name: the name that errors and codes call it by.
        network: a UNet2DModel of diffusers.
        scheduler: the scheduler config that it was trained with.
        device: the device that it computes on.
        dtype: the dtype that it computes in.
        null_class: the label of the null class: by default the last one; None if there is none.
        owned: whether the network belongs to this model, which then moves, casts and freezes it and converts it to
            its fastest memory layout. False leaves a user's network as it is.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        scheduler: Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        null_class: int | str | None = LAST,
        owned: bool = True,
    ) -> None:
        config: Any = network.config  # type: ignore[attr-defined]
        height, width = sides_of(config.sample_size, name)
        if config.class_embed_type is not None and not config.num_class_embeds:
            raise InputError(
                f"{name!r} embeds its classes by {config.class_embed_type!r}; this version supports only class labels "
                "(num_class_embeds).",
                parameter="model",
            )
        shape = (int(config.in_channels), int(height), int(width))
        self.schedule = read_schedule(scheduler, flow_spacing="trailing")
        self.values = (0.0, 1.0) if self.schedule.prediction == "score" else (-1.0, 1.0)
        embedded = int(config.num_class_embeds or 0)
        where, what = device_and_dtype(device, dtype)
        self.info = ModelInfo(
            name=name,
            family="pixel",
            shape=shape,
            picture=shape,
            parameters=sum(p.numel() for p in network.parameters()),
            dtype=what,
            device=where,
            classes=null_class if isinstance(null_class, int) else embedded,
            null_class=null_class if isinstance(null_class, int) else embedded - 1 if embedded and null_class else None,
        )
        self._fingerprint = fingerprint(network, self.schedule.path, self.schedule.predicts()) if owned else None
        if owned:
            nn.Module.to(network, device=where, dtype=what)  # diffusers' own method ``to`` would warn of a cast
            network.to(memory_format=memory_format(where, shape))  # pyright: ignore[reportCallIssue]
            network.eval().requires_grad_(False)
        self.network = network
        self.graphs: Graphs | None = Graphs(network)
        self.work = Work.of(network)
        if int(config.out_channels) not in (shape[0], 2 * shape[0]):
            raise InputError(
                f"{name!r} has {config.out_channels} output channels for {shape[0]} input channels.",
                parameter="model",
            )

    @classmethod
    def from_folder(cls, name: str, folder: Path, how: Loading) -> "PixelModel":
        """Loads a DDPM pipeline's folder or a UNet2DModel's folder, and checks the weights against the config.

        Raises:
            InputError: there is no such network, its weights do not fit, or ``ddim.json`` contradicts its config.
            DDIMError: a file is damaged.
        """
        from diffusers.models.unets.unet_2d import UNet2DModel

        if how.file is not None:
            raise InputError(
                f"{how.file.config} holds a pixel model, and single files hold text-to-image models.",
                parameter="config",
            )
        from .model_folder import scheduler_of, unet_folder
        from .weights import diffusers_part

        network = folder / unet_folder(folder)
        unet = diffusers_part(UNet2DModel, network, variant=how.variant)
        scheduler, null = scheduler_of(network), null_class_of(folder)
        embedded = unet.config.num_class_embeds
        if isinstance(null, int) and null != (embedded or 0) - 1:
            raise InputError(
                f"{about_file(folder)} says that {null} is the null class, but that must be the last of the network's "
                f"{embedded or 0} labels.",
                parameter="model",
            )
        if usual_guidance(folder) is not None:
            raise InputError(
                f"{about_file(folder)} names a usual guidance, which only text-to-image models have; leave it out.",
                parameter="model",
            )
        model = cls(name, unet, scheduler, device=how.device, dtype=how.dtype, null_class=null)
        model.check_shapes()
        if how.low_memory and model.info.null_class is None:
            raise InputError(
                f"{name!r} has neither an autoencoder nor guidance, so that nothing would change; leave it out.",
                parameter="low_memory",
            )
        model.low_memory = how.low_memory
        return model

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str | None = None) -> "PixelModel":
        """Wraps a pipeline object, which is not changed.

        Raises:
            InputError: its network is not a UNet2DModel, or is in training mode.
        """
        from .live import is_compiled, is_hooked, require_eval_mode, require_parts

        require_parts(pipeline, {"unet": ("UNet2DModel",)})
        unet = pipeline.unet
        require_eval_mode(unet, "unet")
        config = {"_class_name": type(pipeline.scheduler).__name__, **pipeline.scheduler.config}
        where = pipeline._execution_device  # the weights may be offloaded to another device
        model = cls(name or type(pipeline).__name__, unet, config, device=where, dtype=unet.dtype, owned=False)
        model.threads = not (is_compiled(unet) or is_hooked(unet))
        return model

    @property
    def fingerprint(self) -> str:
        """A hash of config and weights as they were loaded; of a pipeline object, as they are now."""
        if self._fingerprint is not None:
            return self._fingerprint
        return fingerprint(self.network, self.schedule.path, self.schedule.predicts())

    @property
    def engine(self) -> str:
        """How the network computes, as far as it changes the last bits of its output."""
        return engine_of(self.network, split=self.threads, device=self.device)

    def check_shapes(self) -> None:
        """Checks on the meta device that the network accepts images of its config's size, and returns the same size.

        Raises:
            InputError: it does not.
        """
        shapes = ((1, *self.shape), (1,), *([(1,)] if self.classes else []))

        def ask(network: Any, x: Tensor, time: Tensor, *classes: Tensor) -> Tensor:
            return network(x, time, *(labels.long() for labels in classes), return_dict=False)[0]

        output = output_shape(self.network, ask, *shapes, takes=f"the images of {self.name!r}, {self.shape}")
        if output[2:] != self.shape[1:]:
            raise InputError(f"{self.name!r} turns images of shape {self.shape} into {output[1:]}.", parameter="model")

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """Calls the network once; see ``Model.forward``. Extra output channels (a learned variance) are ignored."""
        network, label = self.network, scalar(self.schedule.timestep(node), x.device)
        labels = cond.tensors.get(LABELS)
        if self.classes and labels is None:
            raise InputError(f"the model {self.name!r} needs a class label.", parameter="labels")

        def ask(rows: Tensor, timestep: Tensor, classes: Tensor | None) -> Tensor:
            return network(rows, timestep, class_labels=classes, return_dict=False)[0]

        work, split = self.row_work(x.shape[1:]), self.threads
        inputs = (scaled(x, self.schedule, node).to(self.dtype), label, labels)
        output = run(ask, *inputs, call=call, graphs=self.graphs, tf32=self.tf32, row_work=work, split=split)
        return output[:, : self.shape[0]].to(x.dtype)

    def encode(self, images: Tensor) -> Tensor:
        """Scales images [N, C, H, W] from [0, 1] to the network's range."""
        low, high = self.values
        return images.to(device=self.device, dtype=self.state_dtype) * (high - low) + low

    def decode(self, x0: Tensor) -> Tensor:
        """Scales x0 from the network's range to images in [0, 1], and clips values outside."""
        low, high = self.values
        return ((x0 - low) / (high - low)).clamp(0, 1)


def null_class_of(folder: Path) -> int | str | None:
    """Reads the null class from a folder's ``ddim.json``.

    Returns:
        The label; None if the file says that there is no null class; ``LAST`` if there is no such file.

    Raises:
        InputError: the value is not a label.
    """
    about = read_about(folder)
    if about is None:
        return LAST
    null = about.get("null_class")
    if null is not None and not (is_whole(null) and null > 0):
        raise InputError(
            f"{about_file(folder)} says that the null class is {null!r}, which is not a label.", parameter="model"
        )
    return null


def sides_of(size: Any, name: str) -> tuple[int, int]:
    """Returns (height, width) from a config's ``sample_size``, which is one number or a pair.

    Raises:
        InputError: it is neither.
    """
    both = list(size) if isinstance(size, (list, tuple)) else [size, size]
    if len(both) != 2 or not all(is_whole(side) and 0 < side <= _LONGEST for side in both):
        raise InputError(
            f"the sample_size of {name!r} is {size!r}; it must be one or two whole numbers from 1 to {_LONGEST}.",
            parameter="model",
        )
    return int(both[0]), int(both[1])
