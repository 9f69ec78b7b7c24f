"""The smallest real networks: a diffusers UNet2DModel with random weights, and folders that hold one."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

from ddim.core.conditioning import PromptConditioning
from ddim.core.denoiser import ModelDenoiser
from ddim.core.guidance import Guidance
from ddim.core.prediction import NO_HOLD
from ddim.models.base import Model
from ddim.models.pixel import PixelModel

DDPM = DDPMScheduler(clip_sample=False).config | {"_class_name": "DDPMScheduler"}
STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def unet(channels: int = 1, size: int = 8, classes: int | None = None, out: int | None = None) -> UNet2DModel:
    """About 20 thousand weights, seeded; every group norm has two channels or more a group."""
    torch.manual_seed(7)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=out or channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        num_class_embeds=classes,
    ).eval()


def model(
    channels: int = 1, classes: int | None = None, dtype: torch.dtype = torch.float32, **config: Any
) -> PixelModel:
    """A pixel model on the tiny network, with this scheduler config."""
    return PixelModel("tiny", unet(channels, classes=classes), {**DDPM, **config}, dtype=dtype)


def unguided(model: Model, prompts: PromptConditioning | None = None) -> ModelDenoiser:
    """The network as a denoiser, its x0 as it says it."""
    return model.guided(Guidance(), prompts or PromptConditioning(), hold=NO_HOLD)


def pipeline_folder(folder: Path, network: UNet2DModel | None = None, **config: Any) -> Path:
    """A DDIMPipeline's folder as diffusers writes it."""
    from diffusers import DDIMPipeline

    DDIMPipeline(network or unet(), DDIMScheduler(**config)).save_pretrained(folder)
    return folder
