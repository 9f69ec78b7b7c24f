"""The smallest real Lumina 2 pipeline, and the language model that it shares with Sana; random weights."""

from typing import Any

from tiny_flow import STEPS, autoencoder, louder
from torch import Tensor

SIZE = 8
"""Positions along each side of the latent; the pictures are twice as wide."""


def tokenizer() -> Any:
    """A Gemma tokenizer in which each letter is a token; as published, it puts <bos> first, and pads on the left."""
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    pieces = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        *"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ<>.,:->'",
    ]
    made = GemmaTokenizer(vocab={piece: k for k, piece in enumerate(dict.fromkeys(pieces))}, merges=[])
    made._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return made


def encoder(words: Any, width: int = 16) -> Any:
    """A Gemma 2 of three layers for a tokenizer."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=1024,
        vocab_size=len(words) + 4,
        max_position_embeddings=2048,
    )
    return louder(Gemma2Model(config), {"embed_tokens": 25.0, "q_proj": 8.0, "k_proj": 8.0})


def lumina2(*, size: int = SIZE, width: int = 16, shift: float = 6.0, dynamic: bool = False, **config: Any) -> Any:
    """A Lumina2Pipeline: latents 4 x ``size`` x ``size``, pictures twice as wide."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    words = tokenizer()
    usual: dict[str, Any] = {
        "sample_size": size,
        "in_channels": 4,
        "hidden_size": 32,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 16,
        "axes_dim_rope": (8, 4, 4),
        "cap_feat_dim": 16,
    }
    network = louder(
        Lumina2Transformer2DModel(**{**usual, **config}),
        {"attn.to": 4.0, "caption_embedder": 12.0, "feed_forward": 2.0},
    )
    return Lumina2Pipeline(
        transformer=network,
        vae=autoencoder(4, size=size, scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic),
        text_encoder=encoder(words, width),
        tokenizer=words,
    )


def draw_lumina2(pipeline: Any, x: Tensor, prompts: list[str], negative: str | None, **guidance: Any) -> Tensor:
    """Draws with a Lumina2Pipeline; see ``tiny_flow.Family``. The size is that of the latents."""
    options = {"output_type": "latent", "num_inference_steps": STEPS, **guidance}
    several = None if negative is None else [negative] * len(prompts)
    return pipeline(list(prompts), negative_prompt=several, latents=x.to(pipeline.transformer.dtype), **options).images
