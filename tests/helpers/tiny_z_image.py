"""The smallest real Z-Image pipeline: random weights."""

from typing import Any

import torch
from tiny_flow import autoencoder, louder
from tiny_qwen_image import tokenizer

SIZE = 8
"""Positions along each side of the latent; the pictures are twice as wide."""


def encoder(words: Any, width: int = 16) -> Any:
    """A Qwen3 of three layers for a tokenizer."""
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=len(words) + 4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
    )
    return louder(Qwen3Model(config), {"embed_tokens": 25.0, "q_proj": 8.0, "k_proj": 8.0})


def z_image(*, size: int = SIZE, width: int = 16, shift: float = 6.0, **config: Any) -> Any:
    """A ZImagePipeline: latents 4 x ``size`` x ``size``, pictures twice as wide; the shift 3 makes it a Turbo."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    words = tokenizer()
    usual: dict[str, Any] = {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 16,
        "axes_dims": [8, 4, 4],
        "axes_lens": [640, 64, 64],
    }
    network = louder(ZImageTransformer2DModel(**{**usual, **config}), {"attention.to": 3.0, "cap_embedder": 4.0})
    with torch.no_grad():
        network.x_pad_token.normal_()
        network.cap_pad_token.normal_()
    return ZImagePipeline(
        transformer=network,
        vae=autoencoder(4, size=size, scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        text_encoder=encoder(words, width),
        tokenizer=words,
    )
