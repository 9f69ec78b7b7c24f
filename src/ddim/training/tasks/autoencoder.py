"""An autoencoder of images: diffusers' AutoencoderKL, whose codes a latent diffusion model works on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._utils.errors import InputError
from ...data.images import sheet
from ..config import TrainConfig
from ..data import Batch, Images
from .base import Draw, Task, as_dtype, asked, built, check_options, scaled

if TYPE_CHECKING:
    from PIL import Image

SCALED_BY = 4096  # images whose codes set the scaling factor


class Reconstruction(nn.Module):
    """x, z -> decoder(mean + std z), mean, log variance: what the loss needs of an AutoencoderKL in one call."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [N, C, H, W] in [-1, 1] and N(0, 1) noise in the codes' shape."""
        code = self.autoencoder.encode(x).latent_dist
        image = self.autoencoder.decode(code.mean + code.std * noise).sample
        return image, code.mean, code.logvar


class AutoencoderTask(Task):
    """See ``Task``. Kingma & Welling 2014 (arXiv 1312.6114) with the small KL weight of latent diffusion (Rombach et
    al. 2022, arXiv 2112.10752); no adversary and no perceptual network, but a loss on the error's differences."""

    def __init__(self, config: TrainConfig) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        super().__init__(config)
        check_options(AutoencoderKL, config.model, "model")
        self.factor = 2 ** (len(config.model.get("block_out_channels", (64,))) - 1)
        if config.data.size % self.factor:
            raise InputError(
                f"{config.data.size} must be a multiple of {self.factor}, by which [model] shrinks it.",
                parameter="data.size",
            )

    def prepare(self, images: Images, device: torch.device) -> Images:
        """Keeps the images for sheets and for the scaling factor."""
        self.images = images
        return super().prepare(images, device)

    def build(self) -> nn.Module:
        """A ``Reconstruction`` around the AutoencoderKL of ``[model]``."""
        network = Reconstruction(self._network())
        x = torch.zeros(1, self.config.data.channels, self.config.data.size, self.config.data.size)
        takes = f"{x.shape[-1]}-pixel images"
        shape = asked(lambda: network(x, torch.zeros(self._code_shape(1)))[0], takes).shape
        if shape != x.shape:
            raise InputError(f"the network makes {tuple(shape)} of {tuple(x.shape)}.", parameter="model")
        return network

    def _network(self, scaling_factor: float = 1.0) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        data = self.config.data
        sides = {"sample_size": data.size, "in_channels": data.channels, "out_channels": data.channels}
        return built(AutoencoderKL, {**self.config.model, **sides, "scaling_factor": scaling_factor})

    def _code_shape(self, count: int) -> tuple[int, ...]:
        side = self.config.data.size // self.factor
        return count, self.config.model.get("latent_channels", 4), side, side

    def loss(self, forward: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        """|e| + gradient |differences of e| + kl KL(code | N(0, 1)), each a mean over its numbers."""
        flips, noise = draw.flips_and_noise(torch.Size(self._code_shape(1)[1:]))
        x = scaled(batch, flips, self.config.data.flip).to(self.device)
        image, mean, logvar = (part.float() for part in forward(x, noise.to(self.device)))
        error = image - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        weights = self.config.autoencoder
        return error.abs().mean() + weights.gradient * edges + weights.kl * divergence

    @torch.no_grad()
    def sheet(self, network: nn.Module) -> "Image.Image":
        """Images, each with its reconstruction to the right."""
        x = self._some(self.config.output.samples)
        image = network(x, torch.zeros(self._code_shape(len(x)), device=self.device))[0].float()
        return sheet((torch.stack([x, image], 1).flatten(0, 1).clamp(-1, 1) + 1) / 2)

    def _some(self, count: int) -> Tensor:
        chosen = torch.linspace(0, len(self.images) - 1, min(count, len(self.images))).long().tolist()
        (batch,) = self.images.stream([chosen])
        return (batch.pixels.to(torch.float32) / 127.5 - 1).to(self.device)

    @torch.no_grad()
    def export(self, network: nn.Module, folder: Path) -> None:
        """A folder that AutoencoderKL loads; its scaling factor is 1 / the codes' standard deviation."""
        assert isinstance(network, Reconstruction)
        codes = [network.autoencoder.encode(x).latent_dist.mean for x in self._some(SCALED_BY).split(64)]
        copy = self._network(round(1 / float(torch.cat(codes).std()), 5))
        as_dtype(network.autoencoder, copy, self.config).save_pretrained(folder)
