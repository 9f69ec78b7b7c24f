"""Pixel models: a diffusers UNet2DModel with its scheduler's config, unconditional or class-conditional."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.errors import InputError, is_whole
from .._utils.files import read_json
from ..core.conditioning import LABELS, Conditioning
from ..core.denoiser import Call
from ..core.path import Node, VEPath
from .base import ClassModel, scalar
from .device import device_and_dtype
from .dry_run import output_shape
from .engine.optimize import engine_of
from .engine.threads import min_rows, run_in_threads
from .fingerprint import fingerprint
from .info import ModelInfo
from .scheduler_config import read_schedule

CLASSES = "ddim.json"
"""Beside a pipeline that was trained with dropped labels: ``{"classes": [...], "null_class": 10}``."""
LAST = "last"
"""In place of a null class: the last label, as networks with one have it; a folder that we trained says otherwise."""
_LONGEST = 2**14  # of a side that a config may name; a mistyped one would take all memory


class PixelModel(ClassModel):
    """A UNet2DModel behind the library's interface; made by ``ddim.load``.

    Args:
        name: as it was asked for.
        network: a diffusers UNet2DModel.
        scheduler: the scheduler config it was trained with.
        device: where it computes.
        dtype: what it computes in; the sampler's state is float32, or float64 when this is.
        null_class: the label that stands for no class: by default the last one; None where there is none.
        owned: move, cast and freeze the network, and lay it out as convolutions are fastest; False leaves a live one as
            it is.

    Attributes:
        threads: on a CPU, share the rows of a large batch out among threads.
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
                f"{name!r} embeds its classes by {config.class_embed_type!r}; this version takes those that "
                "count them (num_class_embeds).",
                parameter="model",
            )
        shape = (int(config.in_channels), int(height), int(width))
        self.schedule = read_schedule(scheduler, flow_spacing="trailing")
        if isinstance(self.schedule.path, VEPath):
            raise InputError(
                f"{name!r} has a {scheduler['_class_name']}: such networks want their input scaled or answer "
                "the score, which this version does not do.",
                parameter="model",
            )
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
        self._fingerprint = fingerprint(network, self.schedule.path, self.schedule.prediction) if owned else None
        if owned:
            # nn.Module.to and not diffusers' own, which warns of casts
            nn.Module.to(network, device=where, dtype=what)
            # the layout that convolutions are fastest in; the same numbers
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            network.eval().requires_grad_(False)
        self.network = network
        self.threads, self.least = True, min_rows(network)
        if int(config.out_channels) not in (shape[0], 2 * shape[0]):
            raise InputError(
                f"{name!r} has {config.out_channels} output channels for {shape[0]} input channels.",
                parameter="model",
            )

    @classmethod
    def from_folder(cls, name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> "PixelModel":
        """From a DDPM's pipeline or a bare UNet2DModel, each held against its config first."""
        from diffusers.models.unets.unet_2d import UNet2DModel

        from .model_folder import scheduler_of, unet_folder
        from .weights import diffusers_part

        network = folder / unet_folder(folder)
        unet, scheduler, null = diffusers_part(UNet2DModel, network), scheduler_of(network), null_class_of(folder)
        embedded = unet.config.num_class_embeds
        if isinstance(null, int) and null != (embedded or 0) - 1:
            raise InputError(
                f"{folder / CLASSES} names {null} as the null class, but the network has {embedded or 0} classes, of "
                "which it must be the last.",
                parameter="model",
            )
        model = cls(name, unet, scheduler, device=device, dtype=dtype, null_class=null)
        model.check_shapes()
        return model

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str | None = None) -> "PixelModel":
        """See ``Model``."""
        from .live import is_compiled, is_hooked, require_eval_mode, require_parts

        require_parts(pipeline, {"unet": ("UNet2DModel",)})
        unet = pipeline.unet
        require_eval_mode(unet, "unet")
        config = {"_class_name": type(pipeline.scheduler).__name__, **pipeline.scheduler.config}
        where = pipeline._execution_device  # not where the weights lie, which may be offloaded
        model = cls(name or type(pipeline).__name__, unet, config, device=where, dtype=unet.dtype, owned=False)
        model.threads = not (is_compiled(unet) or is_hooked(unet))
        return model

    @property
    def fingerprint(self) -> str:
        """Of config and weights as they came; of a live network as it is now."""
        if self._fingerprint is not None:
            return self._fingerprint
        return fingerprint(self.network, self.schedule.path, self.schedule.prediction)

    @property
    def engine(self) -> str:
        """See ``Model``."""
        return engine_of(self.network, cut=self.threads)

    def check_shapes(self) -> None:
        """Asks the network what it makes of its own shape, without numbers.

        Raises:
            InputError: it does not take that shape, or answers with another.
        """
        shapes = ((1, *self.shape), (1,), *([(1,)] if self.classes else []))

        def ask(network: Any, x: Tensor, time: Tensor, *classes: Tensor) -> Tensor:
            return network(x, time, *(labels.long() for labels in classes), return_dict=False)[0]

        answer = output_shape(self.network, ask, *shapes, takes=f"the pictures of {self.name!r}, {self.shape}")
        if answer[2:] != self.shape[1:]:
            raise InputError(f"{self.name!r} makes {answer[1:]} of pictures of {self.shape}.", parameter="model")

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """See ``Model``; a learned variance in the upper half of the network's channels is left aside."""
        network, label = self.network, scalar(self.schedule.timestep(node), x.device)
        labels = cond.tensors.get(LABELS)
        if self.classes and labels is None:
            raise InputError(f"the model {self.name!r} needs a class.", parameter="labels")

        def ask(rows: Tensor, classes: Tensor | None) -> Tensor:
            return network(rows, label, class_labels=classes, return_dict=False)[0]

        output = run_in_threads(
            ask, x.to(self.dtype), labels, least=self.least if self.threads else None, layout=call.layout
        )
        return output[:, : self.shape[0]].to(x.dtype)

    def encode(self, images: Tensor) -> Tensor:
        """[0, 1] to [-1, 1]."""
        return images.to(device=self.device, dtype=self.state_dtype) * 2 - 1

    def decode(self, x0: Tensor) -> Tensor:
        """[-1, 1] to [0, 1], what lies outside cut."""
        return ((x0 + 1) / 2).clamp(0, 1)


def null_class_of(folder: Path) -> int | str | None:
    """The null class that a folder's training left beside it: None where it says that there is none, ``LAST`` where it
    says nothing. Raises InputError for what is no label."""
    if not (folder / CLASSES).is_file():
        return LAST
    null = read_json(folder / CLASSES).get("null_class")
    if null is not None and not (is_whole(null) and null > 0):
        raise InputError(f"{folder / CLASSES} names {null!r} as the null class, which is no label.", parameter="model")
    return null


def sides_of(size: Any, name: str) -> tuple[int, int]:
    """Height and width by a config's ``sample_size``: a number, or one for each. Raises InputError otherwise."""
    both = list(size) if isinstance(size, (list, tuple)) else [size, size]
    if len(both) != 2 or not all(is_whole(side) and 0 < side <= _LONGEST for side in both):
        raise InputError(
            f"the sample_size of {name!r} is {size!r}, which is not one or two sides of up to {_LONGEST}.",
            parameter="model",
        )
    return int(both[0]), int(both[1])
