"""Pictures to latents and back, for the families on rectified flow: diffusers' own pipelines as witnesses.

The autoencoder of each tiny pipeline has a scale and a shift (or statistics per channel) of its own, and an error in
one of them would be as large as the latents.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    ChromaImg2ImgPipeline,
    FluxImg2ImgPipeline,
    QwenImageImg2ImgPipeline,
    StableDiffusion3Img2ImgPipeline,
    ZImageImg2ImgPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from oracles import noise_like
from tiny_flow import FAMILIES
from torch import Tensor

AGREE = 1e-6


def parts(pipeline: Any, kind: Any) -> Any:
    """A pipeline of another class with the same parts."""
    return kind(**{name: part for name, part in pipeline.components.items() if name != "image_encoder"})


def encode_sd3(pipeline: Any, images: Tensor) -> Tensor:
    """The latents of images in [-1, 1] in SD 3's pipeline from pictures."""
    where = torch.device("cpu")
    made = parts(pipeline, StableDiffusion3Img2ImgPipeline)
    return made.prepare_latents(images, None, len(images), 1, torch.float32, where)


def encode_flux(pipeline: Any, images: Tensor) -> Tensor:
    """The latents of images in [-1, 1] in FLUX's pipeline from pictures."""
    made, where = parts(pipeline, FluxImg2ImgPipeline), torch.device("cpu")
    n, _, height, width = images.shape
    tokens, _ = made.prepare_latents(images, None, n, 4, height, width, torch.float32, where, None)
    return made._unpack_latents(tokens, height, width, made.vae_scale_factor)


def encode_flux2(pipeline: Any, images: Tensor) -> Tensor:
    """The latents of images in [-1, 1] in FLUX.2's pipeline, where they are references; the mode of the posterior."""
    return pipeline._unpatchify_latents(pipeline._encode_vae_image(images, None))


def encode_chroma(pipeline: Any, images: Tensor) -> Tensor:
    """The latents of images in [-1, 1] in Chroma's pipeline from pictures."""
    made, where = parts(pipeline, ChromaImg2ImgPipeline), torch.device("cpu")
    n, _, height, width = images.shape
    tokens, _ = made.prepare_latents(images, None, n, 4, height, width, torch.float32, where, None)
    return made._unpack_latents(tokens, height, width, made.vae_scale_factor)


def encode_qwen_image(pipeline: Any, images: Tensor) -> Tensor:
    """The latents of images in [-1, 1] in Qwen-Image's pipeline from pictures, where they are videos of one frame."""
    return parts(pipeline, QwenImageImg2ImgPipeline)._encode_vae_image(images.unsqueeze(2), None)[:, :, 0]


def encode_z_image(pipeline: Any, images: Tensor) -> Tensor:
    """The latents of images in [-1, 1] in Z-Image's pipeline from pictures."""
    made, where = parts(pipeline, ZImageImg2ImgPipeline), torch.device("cpu")
    n, _, height, width = images.shape
    return made.prepare_latents(images, None, n, 4, height, width, torch.float32, where, None)


def encode_lumina2(pipeline: Any, images: Tensor) -> Tensor:
    """The latents of images in [-1, 1] for Lumina 2, which has no pipeline from pictures: its decoding inverted."""
    vae = pipeline.vae
    return (vae.encode(images).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor


def encode_sana(pipeline: Any, images: Tensor) -> Tensor:
    """The latents of images in [-1, 1] for Sana, which has no pipeline from pictures: its decoding inverted."""
    return pipeline.vae.encode(images).latent * pipeline.vae.config.scaling_factor


ENCODE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "StableDiffusion3Pipeline": encode_sd3,
    "FluxPipeline": encode_flux,
    "FluxKontextPipeline": encode_flux,
    "Flux2KleinPipeline": encode_flux2,
    "ChromaPipeline": encode_chroma,
    "QwenImagePipeline": encode_qwen_image,
    "ZImagePipeline": encode_z_image,
    "Lumina2Pipeline": encode_lumina2,
    "SanaPipeline": encode_sana,
}
"""Class of a pipeline -> how its sibling that starts from pictures encodes them, if there is one."""


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_are_encoded_as_the_pipeline_does(name, monkeypatch):
    """With the mode of the posterior, which the pipeline samples, and without the noise that it adds."""
    family = FAMILIES[name]
    pipeline = family.pipeline()
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    monkeypatch.setattr(pipeline.scheduler, "scale_noise", lambda sample, timestep, noise: sample, raising=False)
    images = torch.rand(2, 3, *family.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = ENCODE[type(pipeline).__name__](pipeline, images * 2 - 1)
    ours = family.load(pipeline).encode(images)
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)) <= AGREE
    assert float(theirs.std()) > 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_latents_are_decoded_as_the_pipeline_does(name):
    family = FAMILIES[name]
    pipeline = family.pipeline()
    model = family.load(pipeline)
    height, width = (side // model.downscaling for side in family.size)
    x = noise_like((2, model.shape[0], height, width)).float()
    options = next(iter(family.guidances.values()))[1]
    latents, pictures = (
        family.draw(pipeline, x, ["a cat", "a dog"], None, **{**options, "output_type": kind})
        for kind in ("latent", "pt")
    )
    ours = model.decode(latents)
    assert ours.shape == pictures.shape == (2, 3, *family.size)
    assert float((ours - pictures).abs().max()) <= AGREE
    assert float(pictures.std()) > 0.05
