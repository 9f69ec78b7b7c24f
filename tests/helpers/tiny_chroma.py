"""The smallest real Chroma pipelines: random weights, a tokenizer written here."""

from typing import Any

from torch import Tensor

SIDE = 16
"""Positions along each side of the latents by default; pictures are twice as wide."""


def transformer(channels: int = 4, **config: Any) -> Any:
    """A Chroma transformer with one block of each kind, for latents of so many channels."""
    from diffusers import ChromaTransformer2DModel
    from tiny_flow import louder

    usual: dict[str, Any] = {
        "in_channels": 4 * channels,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 4, 4),
        "approximator_num_channels": 16,
        "approximator_hidden_dim": 32,
        "approximator_layers": 1,
    }
    factors = {"context_embedder": 3.0, "to_v": 3.0, "add_v_proj": 3.0, "distilled_guidance_layer": 1.5}
    return louder(ChromaTransformer2DModel(**{**usual, **config}), factors)


def pipeline(kind: str = "ChromaPipeline", *, size: int = SIDE, **config: Any) -> Any:
    """A pipeline of Chroma: latents 4 x ``size`` x ``size``, pictures twice as wide.

    Args:
        kind: its class.
        size: sides of the latents by default.
        config: of the transformer.
    """
    import diffusers
    from tiny_flow import autoencoder, t5_encoder, t5_tokenizer

    words = t5_tokenizer()
    made = getattr(diffusers, kind)(
        transformer=transformer(**config),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(4, size=size, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=t5_encoder(words),
        tokenizer=words,
    )
    made.default_sample_size = size
    return made


def draw(pipeline: Any, x: Tensor, prompts: list[str], negative: str | None, **options: Any) -> Tensor:
    """Draws with a pipeline of Chroma; see ``tiny_flow.Family``."""
    from tiny_flow import STEPS

    n, channels, height, width = x.shape
    size = {"height": height * 2, "width": width * 2}
    settings = {"output_type": "latent", "num_inference_steps": STEPS, **size, **options}
    tokens = pipeline._pack_latents(x, n, channels, height, width)
    negatives = None if negative is None else [negative] * n
    drawn = pipeline(prompt=prompts, negative_prompt=negatives, latents=tokens, **settings).images
    if settings["output_type"] != "latent":
        return drawn
    return pipeline._unpack_latents(drawn, height * 2, width * 2, pipeline.vae_scale_factor)
