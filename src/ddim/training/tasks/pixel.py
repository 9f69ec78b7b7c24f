"""Trains a pixel diffusion model, diffusers' UNet2DModel, with or without classes; exported as a DDIMPipeline."""

from collections.abc import Mapping
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
from ...models.about_file import write_about
from ...solvers.ddim import DDIM
from .. import draws
from ..config import TrainConfig
from ..data import Batch, Images
from ..loss import checksum, diffusion_loss, levels_of, path_of
from .base import (
    Draw,
    Task,
    build_network,
    check_labelled,
    check_options,
    copy_in_dtype,
    count_classes,
    first_output,
    scheduler_options,
    to_model_range,
)

if TYPE_CHECKING:
    from PIL import Image


_WHO = "a network with pixel.condition = 'labels'"


class PixelTask(Task):
    """Trains a UNet2DModel with ``loss.diffusion_loss`` on pixels in [-1, 1].

    If ``pixel.condition`` is ``labels``, the network takes the class of each image. A share of the labels,
    ``pixel.label_dropout``, is replaced by the null class.
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
        """Counts the classes and finds their names.

        Raises:
            InputError: the number of classes contradicts ``pixel.classes`` or ``model.num_class_embeds``.
        """
        if self.labelled:
            pixel, self.classes = self.config.pixel, count_classes(images, _WHO)
            self.null_class = self.classes if pixel.label_dropout else None
            self.names = pixel.classes or tuple(images.class_names[: self.classes])
            if self.names and len(self.names) != self.classes:
                raise InputError(
                    f"{list(self.names)!r} names {len(self.names)} classes, but the images have {self.classes}.",
                    parameter="pixel.classes",
                )
            wanted = self.config.model.get("num_class_embeds")
            if wanted not in (None, self.embeddings):
                also = " and the null class" if pixel.label_dropout else ""
                raise InputError(
                    f"{wanted!r} contradicts the images, whose {self.classes} classes{also} need {self.embeddings}.",
                    parameter="model.num_class_embeds",
                )
        self.levels = self.levels.to(device)
        return super().prepare(images, device)

    @property
    def embeddings(self) -> int:
        """The number of labels of the network: the classes, and the null class if there is one."""
        return self.classes + (self.null_class is not None)

    def _class_labels(self, labels: Tensor) -> dict[str, Tensor]:
        """Returns the network's keyword arguments for labels, int64 [N]; empty for an unconditional network."""
        return {"class_labels": labels} if self.labelled else {}

    def build(self) -> nn.Module:
        """Builds the UNet2DModel of ``[model]`` for images of the size in ``[data]``."""
        network = self._network()
        side, channels = self.config.data.size, self.config.data.channels
        x = torch.zeros(1, channels, side, side)
        conditions = self._class_labels(torch.zeros(1, dtype=torch.int64))  # on the CPU, like the new network
        takes = f"{side}x{side} images"
        shape = first_output(lambda: network(x, torch.zeros(1, dtype=torch.int64), **conditions).sample, takes).shape
        if shape != x.shape:
            raise InputError(
                f"the network turns {side}x{side} images into {shape[-2]}x{shape[-1]} ones.", parameter="model"
            )
        return network

    def _network(self) -> nn.Module:
        from diffusers.models.unets.unet_2d import UNet2DModel

        data = self.config.data
        sides = {"sample_size": data.size, "in_channels": data.channels, "out_channels": data.channels}
        labels = {"num_class_embeds": self.embeddings} if self.labelled else {}
        return build_network(UNet2DModel, {**self.config.model, **sides, **labels})

    def checksums(self) -> dict[str, int | None]:
        """Returns a checksum of the user's own loss weights."""
        return {"weights": checksum(self.config.loss, self.levels)}

    def inputs(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """Draws flips, noise and levels, and drops labels; see ``Task.inputs``."""
        flips, noise = draw.flips_and_noise(batch.pixels.shape[1:])
        t = draw.times(len(self.levels.alpha), self.config.loss.times)
        labels = {"labels": self._drop_labels(batch, draw)} if self.labelled else {}
        return {"pixels": batch.pixels, "flips": flips, "noise": noise, "t": t, **labels}

    def loss(self, forward: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Computes the diffusion loss; see ``loss.diffusion_loss``."""
        conditions = self._class_labels(inputs["labels"]) if self.labelled else {}
        return diffusion_loss(
            lambda x, timestep: forward(x, timestep, **conditions).sample,
            to_model_range(inputs["pixels"], inputs["flips"], self.config.data.flip),
            inputs["noise"],
            inputs["t"],
            self.levels,
            self.config.loss.prediction,
        )

    def _drop_labels(self, batch: Batch, draw: Draw) -> Tensor:
        """Returns the labels of a micro-batch, int64 [N], with a random share replaced by the null class."""
        labels = torch.tensor(batch.labels, dtype=torch.int64)
        if self.null_class is None:
            return labels
        return labels.masked_fill(draw.dropped(self.config.pixel.label_dropout), self.null_class)

    @torch.no_grad()
    def sheet(self, network: nn.Module) -> "Image.Image":
        """Samples images with DDIM (eta = 0, trailing spacing, x0 clipped), always from the same noise.

        With labels, each row shows one class, without guidance; see ``class_rows``.
        """
        output, data, path = self.config.output, self.config.data, path_of(self.config.schedule)

        columns, labels = class_rows(output.samples, self.classes)
        conditions = self._class_labels(torch.tensor(labels, dtype=torch.int64, device=self.device))

        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            return network(x, timestep, **conditions).sample.float()

        noise = draws.sheet_noise(self.config.train.seed, output.samples, (data.channels, data.size, data.size))
        solver, grid = DDIM(), make_grid(path, output.sample_steps, "trailing")
        denoise = corrected(from_network(predict, path, self.config.loss.prediction), clip)
        state = solve(denoise, solver, {"x": noise.to(self.device)}, grid)
        return sheet((solver.read(state) + 1) / 2, columns)

    def export(self, network: nn.Module, folder: Path) -> None:
        """Writes a folder that DDIMPipeline loads; with classes, it also contains their names in ``ddim.json``."""
        from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        unet = copy_in_dtype(network, self._network(), self.config)
        scheduler = DDIMScheduler(**scheduler_options(self.config.schedule, self.config.loss.prediction))
        DDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
        if self.labelled:
            names = {"classes": list(self.names)} if self.names else {}
            null = {} if self.null_class is None else {"null_class": self.null_class}
            write_about(folder, **names, **null)


def class_rows(samples: int, classes: int) -> tuple[int | None, list[int]]:
    """Arranges the classes on a sample sheet.

    Each row shows one class; after the last class the rows begin again with the first. If there are more classes than
    images, each image shows another class, and the sheet is square.

    Returns:
        The number of columns (None for a square sheet), and the label of each image (empty without classes).
    """
    if not classes:
        return None, []
    columns = samples // classes
    return columns or None, [at // max(1, columns) % classes for at in range(samples)]
