"""Trains an autoencoder of images, diffusers' AutoencoderKL, for a latent diffusion model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._utils.errors import InputError
from ...data.images import sheet
from ..config import TrainConfig
from ..data import Batch, Images
from .base import Draw, Task, build_network, check_options, copy_in_dtype, first_output, to_model_range

if TYPE_CHECKING:
    from PIL import Image

SCALING_IMAGES = 4096  # the scaling factor is computed from the latents of so many images


class Reconstruction(nn.Module):
    """Computes all that the loss needs from an AutoencoderKL in one forward call, as DDP requires."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes images, samples the latent, and decodes it.

        Args:
            x: images [N, C, H, W] in [-1, 1].
            noise: N(0, 1) noise z in the latents' shape.

        Returns:
            decoder(mean + std z), and the mean and log variance of the latents.
        """
        code = self.autoencoder.encode(x).latent_dist
        image = self.autoencoder.decode(code.mean + code.std * noise).sample
        return image, code.mean, code.logvar


class AutoencoderTask(Task):
    """Trains a variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114).

    As in latent diffusion (Rombach et al. 2022, arXiv 2112.10752) the KL weight is small. In place of their adversarial
    and perceptual losses, there is a loss on the differences of the error between neighbouring pixels.
    """

    def __init__(self, config: TrainConfig) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        super().__init__(config)
        check_options(AutoencoderKL, config.model, "model")
        self.factor = 2 ** (len(config.model.get("block_out_channels", (64,))) - 1)
        if config.data.size % self.factor:
            raise InputError(
                f"{config.data.size} must be a multiple of {self.factor}, by which the network in [model] shrinks "
                "images.",
                parameter="data.size",
            )

    def prepare(self, images: Images, device: torch.device) -> Images:
        """Keeps the images, which the sheets and the scaling factor need."""
        self.images = images
        return super().prepare(images, device)

    def build(self) -> nn.Module:
        """Builds the AutoencoderKL of ``[model]``, in a ``Reconstruction``."""
        network = Reconstruction(self._network())
        x = torch.zeros(1, self.config.data.channels, self.config.data.size, self.config.data.size)
        takes = f"{x.shape[-1]}-pixel images"
        shape = first_output(lambda: network(x, torch.zeros(self._code_shape(1)))[0], takes).shape
        if shape != x.shape:
            raise InputError(
                f"the network turns images of shape {tuple(x.shape)} into {tuple(shape)}.", parameter="model"
            )
        return network

    def _network(self, scaling_factor: float = 1.0) -> nn.Module:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        data = self.config.data
        sides = {"sample_size": data.size, "in_channels": data.channels, "out_channels": data.channels}
        return build_network(AutoencoderKL, {**self.config.model, **sides, "scaling_factor": scaling_factor})

    def _code_shape(self, count: int) -> tuple[int, ...]:
        side = self.config.data.size // self.factor
        return count, self.config.model.get("latent_channels", 4), side, side

    def inputs(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """Draws flips and the noise of the latents; see ``Task.inputs``."""
        flips, noise = draw.flips_and_noise(torch.Size(self._code_shape(1)[1:]))
        return {"pixels": batch.pixels, "flips": flips, "noise": noise}

    def loss(self, forward: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Computes |e| + gradient |differences of e| + kl KL(latent | N(0, 1)), each a mean over its numbers."""
        x = to_model_range(inputs["pixels"], inputs["flips"], self.config.data.flip)
        image, mean, logvar = (part.float() for part in forward(x, inputs["noise"]))
        error = image - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        weights = self.config.autoencoder
        return error.abs().mean() + weights.gradient * edges + weights.kl * divergence

    @torch.no_grad()
    def sheet(self, network: nn.Module) -> "Image.Image":
        """Shows images of the data set, each with its reconstruction to the right."""
        x = self._some(self.config.output.samples)
        image = network(x, torch.zeros(self._code_shape(len(x)), device=self.device))[0].float()
        return sheet((torch.stack([x, image], 1).flatten(0, 1).clamp(-1, 1) + 1) / 2)

    def _some(self, count: int) -> Tensor:
        """Returns up to ``count`` images, evenly spaced over the data set, as float32 in [-1, 1]."""
        chosen = torch.linspace(0, len(self.images) - 1, min(count, len(self.images))).long().tolist()
        (batch,) = self.images.stream([chosen])
        return (batch.pixels.to(torch.float32) / 127.5 - 1).to(self.device)

    @torch.no_grad()
    def export(self, network: nn.Module, folder: Path) -> None:
        """Writes a folder that AutoencoderKL loads; its scaling factor is 1 / the latents' standard deviation."""
        assert isinstance(network, Reconstruction)
        codes = [network.autoencoder.encode(x).latent_dist.mean for x in self._some(SCALING_IMAGES).split(64)]
        copy = self._network(round(1 / float(torch.cat(codes).std()), 5))
        copy_in_dtype(network.autoencoder, copy, self.config).save_pretrained(folder)
