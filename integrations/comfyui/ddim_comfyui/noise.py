"""The noisy end of an inversion as a NOISE, from which ComfyUI's own samplers go on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim import InputError


@dataclass(frozen=True)
class CodeNoise:
    """A NOISE for ``SamplerCustomAdvanced``, with which its sampler starts at the noisy end of an inversion.

    A sampler adds the noise to ``latent_image``, in proportions that depend on the model. On rectified flow nothing of
    a LATENT is left at sigma = 1, so that only a NOISE can hold the start of a sampler on every model.

    Attributes:
        x: the start, [N, C, h, w], as the network sees it, in ComfyUI's convention.
        sigma: its noise level.
        patcher: the MODEL.
        seed: for samplers that draw noise in their steps.
    """

    x: Tensor
    sigma: float
    patcher: Any
    seed: int = 0

    def generate_noise(self, input_latent: Mapping[str, Any]) -> Tensor:
        """Returns the noise that makes ``x`` of a LATENT, in its shape.

        Args:
            input_latent: the LATENT that the sampler adds the noise to; any of the right shape.

        Raises:
            InputError: its shape is another one.
        """
        latent: Tensor = input_latent["samples"].cpu()
        if latent.numel() != self.x.numel() or latent.shape[:2] != self.x.shape[:2]:
            raise InputError(
                f"it has the shape {tuple(latent.shape)}, and the noise {tuple(self.x.shape)}; connect the latent that "
                "DDIM Invert gives.",
                parameter="latent_image",
            )
        if latent.count_nonzero():  # ComfyUI does not scale an empty one either
            latent = self.patcher.get_model_object("latent_format").process_in(latent)
        sampling, sigma = self.patcher.get_model_object("model_sampling"), torch.tensor([self.sigma])
        largest = float(sampling.sigma_max)
        from_the_top = self.sigma > largest or math.isclose(self.sigma, largest, rel_tol=1e-5)
        one = torch.ones_like(latent[:1])
        factor = sampling.noise_scaling(sigma, one, torch.zeros_like(one), from_the_top)
        rest = sampling.noise_scaling(sigma, torch.zeros_like(latent), latent, from_the_top)
        return (self.x.reshape(latent.shape) - rest) / factor
