"""The smallest real FLUX.2 klein pipelines: random weights, and a language model of as many layers as it needs."""

from typing import Any

import torch
from torch import Tensor

SIDE = 8
"""Positions along each side of the latents by default; pictures are twice as wide."""


def encoder(words: Any, width: int = 16, layers: int = 27, **config: Any) -> Any:
    """A Qwen3 with a head for words, for a tokenizer; the hidden states of its layers 9, 18 and 27 embed a prompt."""
    from tiny_flow import louder
    from transformers import Qwen3Config, Qwen3ForCausalLM

    usual: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(words) + 4,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    made = Qwen3ForCausalLM(Qwen3Config(**{**usual, **config}))
    return louder(made, {"embed_tokens": 25.0, "q_proj": 8.0, "k_proj": 8.0, "v_proj": 4.0, "o_proj": 4.0})


def autoencoder(channels: int = 4, size: int = SIDE, **config: Any) -> Any:
    """An AutoencoderKLFlux2 whose batch normalization has another mean and variance for each number of a token."""
    from diffusers import AutoencoderKLFlux2

    usual: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "sample_size": size * 2,
        "batch_norm_eps": 1e-2,
    }
    made = AutoencoderKLFlux2(**{**usual, **config})
    count = made.bn.num_features
    made.bn.running_mean.copy_(torch.linspace(-0.5, 0.6, count))
    made.bn.running_var.copy_(torch.linspace(0.05, 1.5, count))
    return made.eval()


def transformer(channels: int = 4, **config: Any) -> Any:
    """A FLUX.2 transformer with one block of each kind, for latents of so many channels."""
    from diffusers import Flux2Transformer2DModel
    from tiny_flow import louder

    usual: dict[str, Any] = {
        "in_channels": 4 * channels,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    }
    factors = {"context_embedder": 3.0, "to_v": 3.0, "add_v_proj": 6.0, "modulation": 3.0, "to_out": 3.0}
    return louder(Flux2Transformer2DModel(**{**usual, **config}), factors)


def pipeline(
    kind: str = "Flux2KleinPipeline", *, distilled: bool = False, size: int = SIDE, width: int = 16, **config: Any
) -> Any:
    """A pipeline of FLUX.2 klein: latents 4 x ``size`` x ``size``, pictures twice as wide.

    Args:
        kind: its class.
        distilled: whether it is distilled to a few steps without guidance.
        size: sides of the latents by default.
        width: of the language model.
        config: of the transformer.
    """
    import diffusers
    from tiny_qwen_image import tokenizer

    words = tokenizer()
    made = getattr(diffusers, kind)(
        transformer=transformer(**config),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(size=size),
        text_encoder=encoder(words, width),
        tokenizer=words,
        is_distilled=distilled,
    )
    made.default_sample_size = size
    return made


def picture(height: int = 64, width: int = 80, seed: int = 7) -> Tensor:
    """A smooth random picture [1, 3, height, width] of eight bits, in [0, 1]; the pipeline takes none below 64x64."""
    import tiny_flux

    return (tiny_flux.picture(height, width, seed) * 255).round() / 255


def normalized(pipeline: Any, latents: Tensor) -> Tensor:
    """Latents as the pipeline returns them, as the network sees them, by its own functions, [N, C, h, w]."""
    norm, eps = pipeline.vae.bn, pipeline.vae.config.batch_norm_eps
    mean, variance = (t.view(1, -1, 1, 1) for t in (norm.running_mean, norm.running_var))
    return pipeline._unpatchify_latents((pipeline._patchify_latents(latents) - mean) / torch.sqrt(variance + eps))


def draw(pipeline: Any, x: Tensor, prompts: list[str], negative: str | None, **options: Any) -> Tensor:
    """Draws with a FLUX.2 klein, which takes a negative prompt as an embedding; see ``tiny_flow.Family``."""
    from tiny_flow import STEPS

    n, _, height, width = x.shape
    size = {"height": height * 2, "width": width * 2}
    settings = {"output_type": "latent", "num_inference_steps": STEPS, **size, **options}
    if negative is not None:
        settings["negative_prompt_embeds"], _ = pipeline.encode_prompt([negative] * n)
    drawn = pipeline(prompt=list(prompts), latents=pipeline._patchify_latents(x), **settings).images
    return drawn if settings["output_type"] != "latent" else normalized(pipeline, drawn)


def draw_with_reference(
    pipeline: Any, x: Tensor, prompts: list[str], negative: str | None, *, reference: Tensor, **options: Any
) -> Tensor:
    """Draws with a pipeline that looks at a picture; it takes pictures of eight bits only."""
    from PIL import Image

    pixels = (reference[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
    return draw(pipeline, x, prompts, negative, image=Image.fromarray(pixels.numpy()), **options)
