"""A denoiser of images, perhaps told their classes: diffusers' UNet2DModel, exported as a DDIMPipeline."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..._utils.errors import InputError
from ...core.denoiser import corrected, from_network
from ...core.grid import make_grid
from ...core.prediction import clip
from ...core.solve import solve
from ...data.images import sheet
from ...solvers.ddim import DDIM
from .. import draws
from ..config import TrainConfig
from ..data import Batch, Images
from ..loss import checksum, diffusion_loss, levels_of, path_of
from .base import (
    Draw,
    Task,
    as_dtype,
    asked,
    built,
    check_labelled,
    check_options,
    count_classes,
    scaled,
    scheduler_options,
)

if TYPE_CHECKING:
    from PIL import Image


_WHO = "a network with pixel.condition = 'labels'"


class PixelTask(Task):
    """See ``Task``; the loss is ``loss.diffusion_loss`` on pixels in [-1, 1].

    Where ``pixel.condition`` is ``labels``, the network is told the class of each image, and the null class in place of
    a share of them.
    """

    def __init__(self, config: TrainConfig) -> None:
        from diffusers.models.unets.unet_2d import UNet2DModel

        super().__init__(config)
        check_options(UNet2DModel, config.model, "model")
        self.levels = levels_of(config.schedule, config.loss)
        self.labelled = config.pixel.condition == "labels"
        if self.labelled:
            check_labelled(config, _WHO)
        self.classes, self.null_class, self.names = 0, None, ()

    def prepare(self, images: Images, device: torch.device) -> Images:
        """Counts the classes and finds their names."""
        if self.labelled:
            pixel, self.classes = self.config.pixel, count_classes(images, _WHO)
            self.null_class = self.classes if pixel.label_dropout else None
            self.names = pixel.classes or tuple(images.class_names[: self.classes])
            if self.names and len(self.names) != self.classes:
                raise InputError(
                    f"{list(self.names)!r} names {len(self.names)} classes; the images have {self.classes}.",
                    parameter="pixel.classes",
                )
            given = self.config.model.get("num_class_embeds")
            if given not in (None, self.embeddings):
                also = " and the null class" if pixel.label_dropout else ""
                raise InputError(
                    f"{given!r} contradicts the images, whose {self.classes} classes{also} give {self.embeddings}.",
                    parameter="model.num_class_embeds",
                )
        return super().prepare(images, device)

    @property
    def embeddings(self) -> int:
        """How many labels the network knows: the classes, and the null class where there is one."""
        return self.classes + (self.null_class is not None)

    def _told(self, labels: Tensor) -> dict[str, Tensor]:
        """What the network is given beside x and the timestep: ``labels``, int64 [N], or nothing."""
        return {"class_labels": labels} if self.labelled else {}

    def build(self) -> nn.Module:
        """A UNet2DModel of the size in ``[data]``."""
        network = self._network()
        side, channels = self.config.data.size, self.config.data.channels
        x = torch.zeros(1, channels, side, side)
        told = self._told(torch.zeros(1, dtype=torch.int64))  # the network is not on the device yet
        takes = f"{side}x{side} images"
        shape = asked(lambda: network(x, torch.zeros(1, dtype=torch.int64), **told).sample, takes).shape
        if shape != x.shape:
            raise InputError(
                f"the network makes {shape[-2]}x{shape[-1]} images of {side}x{side} ones.", parameter="model"
            )
        return network

    def _network(self) -> nn.Module:
        from diffusers.models.unets.unet_2d import UNet2DModel

        data = self.config.data
        sides = {"sample_size": data.size, "in_channels": data.channels, "out_channels": data.channels}
        labels = {"num_class_embeds": self.embeddings} if self.labelled else {}
        return built(UNet2DModel, {**self.config.model, **sides, **labels})

    def sums(self) -> dict[str, int | None]:
        """Of the user's own loss weights."""
        return {"weights": checksum(self.config.loss, self.levels)}

    def loss(self, forward: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        """See ``Task``."""
        flips, noise = draw.flips_and_noise(batch.pixels.shape[1:])
        x0 = scaled(batch, flips, self.config.data.flip).to(self.device)
        t = draw.times(len(self.levels.alpha), self.config.loss.times).to(self.device)
        told = self._told(self._kept(batch, draw).to(self.device))
        return diffusion_loss(
            lambda x, timestep: forward(x, timestep, **told).sample,
            x0,
            noise.to(self.device),
            t,
            self.levels.to(self.device),
            self.config.loss.prediction,
        )

    def _kept(self, batch: Batch, draw: Draw) -> Tensor:
        """The labels of a micro-batch, int64 [N], of which ``draw`` has replaced a share by the null class."""
        labels = torch.tensor(batch.labels, dtype=torch.int64)
        if self.null_class is None:
            return labels
        return labels.masked_fill(draw.dropped(self.config.pixel.label_dropout), self.null_class)

    @torch.no_grad()
    def sheet(self, network: nn.Module) -> "Image.Image":
        """Samples of DDIM (eta = 0, trailing, x0 clipped), from the same noise every time. With labels each row
        shows one class, without guidance; see ``class_rows``."""
        output, data, path = self.config.output, self.config.data, path_of(self.config.schedule)

        columns, labels = class_rows(output.samples, self.classes)
        told = self._told(torch.tensor(labels, dtype=torch.int64, device=self.device))

        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            return network(x, timestep, **told).sample.float()

        noise = draws.sheet_noise(self.config.train.seed, output.samples, (data.channels, data.size, data.size))
        solver, grid = DDIM(), make_grid(path, output.sample_steps, "trailing")
        denoise = corrected(from_network(predict, path, self.config.loss.prediction), clip)
        state = solve(denoise, solver, {"x": noise.to(self.device)}, grid)
        return sheet((solver.read(state) + 1) / 2, columns)

    def export(self, network: nn.Module, folder: Path) -> None:
        """A folder that DDIMPipeline loads, with ``ddim.json`` in it where the network is told classes."""
        from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        unet = as_dtype(network, self._network(), self.config)
        scheduler = DDIMScheduler(**scheduler_options(self.config.schedule, self.config.loss.prediction))
        DDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
        if self.labelled:
            names = {"classes": list(self.names)} if self.names else {}
            null = {} if self.null_class is None else {"null_class": self.null_class}
            about = {**names, **null}
            (folder / "ddim.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def class_rows(samples: int, classes: int) -> tuple[int | None, list[int]]:
    """How a sheet of ``samples`` pictures shows the classes: its columns and the label of each picture.

    A row shows one class, and the classes begin again below the last one. Where there are more classes than pictures,
    each picture shows another class and the sheet is square (None). Without classes there are no labels.
    """
    if not classes:
        return None, []
    columns = samples // classes
    return columns or None, [at // max(1, columns) % classes for at in range(samples)]
