"""The smallest real Sana pipeline: random weights."""

from typing import Any

from tiny_flow import STEPS, louder
from tiny_lumina2 import encoder, tokenizer
from torch import Tensor

SIZE = 8
"""Positions along each side of the latent; the pictures are twice as wide."""


def autoencoder(channels: int = 4) -> Any:
    """A DC-AE of two levels."""
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        latent_channels=channels,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).eval()


def dpm_solver() -> Any:
    """The scheduler of published folders, with a solver of order 1 in place of 2."""
    from diffusers import DPMSolverMultistepScheduler

    flow: dict[str, Any] = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    return DPMSolverMultistepScheduler(**flow, solver_order=1)


def sana(*, size: int = SIZE, width: int = 16, channels: int = 4, scheduler: Any = None, **config: Any) -> Any:
    """A SanaPipeline: latents 4 x ``size`` x ``size``, pictures twice as wide."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel

    words = tokenizer()
    usual: dict[str, Any] = {
        "sample_size": size,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 16,
        "timestep_scale": 0.5,
    }
    return SanaPipeline(
        transformer=louder(SanaTransformer2DModel(**{**usual, **config}), {"attn2": 3.0, "caption": 2.0}),
        vae=autoencoder(channels),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=encoder(words, width),
        tokenizer=words,
    )


def sana_dpm(**options: Any) -> Any:
    """A SanaPipeline with the scheduler of published folders."""
    return sana(scheduler=dpm_solver(), **options)


def draw_sana(pipeline: Any, x: Tensor, prompts: list[str], negative: str | None, **guidance: Any) -> Tensor:
    """Draws with a SanaPipeline; see ``tiny_flow.Family``. It takes the latents' own size, as without binning.

    The pipeline sets the ``padding_side`` of its tokenizer, which is put back here.
    """
    options = {"output_type": "latent", "num_inference_steps": STEPS, "latents": x, **guidance}
    words, side = pipeline.tokenizer, pipeline.tokenizer.padding_side
    try:
        return pipeline(list(prompts), negative_prompt=negative or "", use_resolution_binning=False, **options).images
    finally:
        words.padding_side = side
