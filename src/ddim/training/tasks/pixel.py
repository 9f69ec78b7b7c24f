"""A denoiser of images: diffusers' UNet2DModel, exported as a DDIMPipeline."""

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
from ..data import Batch
from ..loss import checksum, diffusion_loss, levels_of, path_of
from .base import Draw, Task, as_dtype, asked, built, check_options, scaled, scheduler_options

if TYPE_CHECKING:
    from PIL import Image


class PixelTask(Task):
    """See ``Task``; the loss is ``loss.diffusion_loss`` on pixels in [-1, 1]."""

    def __init__(self, config: TrainConfig) -> None:
        from diffusers.models.unets.unet_2d import UNet2DModel

        super().__init__(config)
        check_options(UNet2DModel, config.model, "model")
        self.levels = levels_of(config.schedule, config.loss)

    def build(self) -> nn.Module:
        """A UNet2DModel of the size in ``[data]``."""
        network = self._network()
        side, channels = self.config.data.size, self.config.data.channels
        x = torch.zeros(1, channels, side, side)
        shape = asked(lambda: network(x, torch.zeros(1, dtype=torch.int64)).sample, f"{side}x{side} images").shape
        if shape != x.shape:
            raise InputError(
                f"the network makes {shape[-2]}x{shape[-1]} images of {side}x{side} ones.", parameter="model"
            )
        return network

    def _network(self) -> nn.Module:
        from diffusers.models.unets.unet_2d import UNet2DModel

        data = self.config.data
        sides = {"sample_size": data.size, "in_channels": data.channels, "out_channels": data.channels}
        return built(UNet2DModel, {**self.config.model, **sides})

    def sums(self) -> dict[str, int | None]:
        """Of the user's own loss weights."""
        return {"weights": checksum(self.config.loss, self.levels)}

    def loss(self, forward: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        """See ``Task``."""
        flips, noise = draw.flips_and_noise(batch.pixels.shape[1:])
        x0 = scaled(batch, flips, self.config.data.flip).to(self.device)
        t = draw.times(len(self.levels.alpha), self.config.loss.times).to(self.device)
        levels = self.levels.to(self.device)
        return diffusion_loss(
            lambda x, label: forward(x, label).sample, x0, noise.to(self.device), t, levels, self.config.loss.prediction
        )

    @torch.no_grad()
    def sheet(self, network: nn.Module) -> "Image.Image":
        """Samples of DDIM (eta = 0, trailing, x0 clipped), from the same noise every time."""
        output, data, path = self.config.output, self.config.data, path_of(self.config.schedule)

        def predict(x: Tensor, label: Tensor) -> Tensor:
            return network(x, label).sample.float()

        noise = draws.sheet_noise(self.config.train.seed, output.samples, (data.channels, data.size, data.size))
        solver, grid = DDIM(), make_grid(path, output.sample_steps, "trailing")
        denoise = corrected(from_network(predict, path, self.config.loss.prediction), clip)
        state = solve(denoise, solver, {"x": noise.to(self.device)}, grid)
        return sheet((solver.read(state) + 1) / 2)

    def export(self, network: nn.Module, folder: Path) -> None:
        """A folder that DDIMPipeline loads."""
        from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        unet = as_dtype(network, self._network(), self.config)
        scheduler = DDIMScheduler(**scheduler_options(self.config.schedule, self.config.loss.prediction))
        DDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
