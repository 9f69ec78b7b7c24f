"""The smallest real FLUX.1 pipelines: random weights, tokenizers written here; each is made in a second."""

from typing import Any

import torch
from torch import Tensor

SIDE = 16
"""Positions along each side of the latents by default; pictures are twice as wide."""


def transformer(channels: int = 4, *, guidance: bool = True, **config: Any) -> Any:
    """A FLUX transformer with one block of each kind, for latents of so many channels."""
    from diffusers import FluxTransformer2DModel
    from tiny_flow import louder

    usual: dict[str, Any] = {
        "in_channels": 4 * channels,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 12,
        "guidance_embeds": guidance,
        "axes_dims_rope": (4, 4, 4),
    }
    # Random weights of this size hardly look at what they are told: make them look.
    factors = {"context_embedder": 3.0, "time_text_embed.text": 3.0, "guidance_embedder": 3.0, "to_v": 3.0}
    return louder(FluxTransformer2DModel(**{**usual, **config}), factors)


def pipeline(
    kind: str = "FluxPipeline", *, guidance: bool = True, dynamic: bool | None = None, size: int = SIDE, **config: Any
) -> Any:
    """A pipeline of FLUX: latents 4 x ``size`` x ``size``, pictures twice as wide.

    Args:
        kind: its class.
        guidance: whether it is guidance-distilled, as FLUX.1-dev is; otherwise it is a FLUX.1-schnell.
        dynamic: whether its grid is shifted by the number of tokens; by default as ``guidance``. True without
            ``guidance`` is a de-distilled FLUX.1-dev.
        size: sides of the latents by default.
        config: of the transformer.
    """
    import diffusers
    from tiny_flow import autoencoder, t5_encoder, t5_tokenizer
    from tiny_sdxl import encoder, tokenizer

    one, two = tokenizer(), t5_tokenizer()
    # As published: dev shifts by the number of tokens, schnell does not shift.
    dynamic = guidance if dynamic is None else dynamic
    shift: dict[str, Any] = {"shift": 3.0, "use_dynamic_shifting": True} if dynamic else {"shift": 1.0}
    made = getattr(diffusers, kind)(
        transformer=transformer(guidance=guidance, **config),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
        vae=autoencoder(4, size=size, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=encoder(one, 12),
        tokenizer=one,
        text_encoder_2=t5_encoder(two),
        tokenizer_2=two,
    )
    made.default_sample_size = size
    return made


def picture(height: int = 32, width: int = 48, seed: int = 7) -> Tensor:
    """A smooth random picture [1, 3, height, width] in [0, 1]."""
    noise = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear").clamp(0, 1)


def draw(pipeline: Any, x: Tensor, prompts: list[str], negative: str | None, **options: Any) -> Tensor:
    """Draws with a pipeline of FLUX; see ``tiny_flow.Family``."""
    from tiny_flow import STEPS

    if options.get("true_cfg_scale", 1.0) > 1:  # without a negative prompt the pipeline would not guide at all
        options["negative_prompt"] = [negative or ""] * len(prompts)
    n, _, height, width = x.shape
    settings = {"output_type": "latent", "num_inference_steps": STEPS, **options}
    if not (pipeline.transformer.config.guidance_embeds or pipeline.scheduler.config.use_dynamic_shifting):
        settings["max_sequence_length"] = 256
    tokens = pipeline._pack_latents(x, n, x.shape[1], height, width)
    drawn = pipeline(prompt=prompts, latents=tokens, height=height * 2, width=width * 2, **settings).images
    if settings["output_type"] != "latent":
        return drawn
    return pipeline._unpack_latents(drawn, height * 2, width * 2, pipeline.vae_scale_factor)


def draw_with_reference(
    pipeline: Any, x: Tensor, prompts: list[str], negative: str | None, *, reference: Tensor, **options: Any
) -> Tensor:
    """Draws with a FluxKontextPipeline that looks at a picture, which it does not resize."""
    about = {"image": reference, "_auto_resize": False, "max_area": x.shape[2] * x.shape[3] * 4, **options}
    return draw(pipeline, x, prompts, negative, **about)
