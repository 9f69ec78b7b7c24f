"""The smallest real Qwen-Image pipeline, and the tokenizer that it shares with Z-Image; random weights."""

from typing import Any

from tiny_flow import STEPS, louder
from torch import Tensor

SIZE = 8
"""Positions along each side of the latent; the pictures are twice as wide."""


def tokenizer() -> Any:
    """A Qwen tokenizer in which each byte is a token, with a chat template like that of Qwen3."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = Qwen2Tokenizer(vocab={piece: k for k, piece in enumerate(pieces)}, merges=[])
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def encoder(words: Any, width: int = 16) -> Any:
    """A Qwen2.5-VL of two layers for a tokenizer."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    layers = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    rope = {"mrope_section": [1, 1, width // 4 - 2], "rope_type": "default", "type": "default"}
    ids = {"bos_token_id": None, "eos_token_id": None}
    config = Qwen2_5_VLConfig(
        tie_word_embeddings=False,  # as published
        text_config={**layers, **heads, **ids, "rope_scaling": rope, "rope_theta": 1e6, "vocab_size": len(words) + 4},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
        },
    )
    return louder(Qwen2_5_VLForConditionalGeneration(config), {"embed_tokens": 25.0, "q_proj": 8.0, "k_proj": 8.0})


def autoencoder(channels: int = 4) -> Any:
    """An autoencoder of videos whose latents are half as wide; its channels have different means and spreads."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[-0.5 + 0.3 * k for k in range(channels)],
        latents_std=[0.5 + 0.25 * k for k in range(channels)],
    ).eval()


def qwen_image(*, size: int = SIZE, width: int = 16, channels: int = 4, **config: Any) -> Any:
    """A QwenImagePipeline: latents 4 x ``size`` x ``size``, pictures twice as wide."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

    words = tokenizer()
    usual: dict[str, Any] = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (8, 4, 4),
    }
    made = QwenImagePipeline(
        transformer=louder(QwenImageTransformer2DModel(**{**usual, **config}), {"txt": 2.0, "attn": 3.0}),
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02, use_dynamic_shifting=True
        ),
        vae=autoencoder(channels),
        text_encoder=encoder(words, width),
        tokenizer=words,
    )
    made.default_sample_size = size
    return made


def draw_qwen_image(pipeline: Any, x: Tensor, prompts: list[str], negative: str | None, **guidance: Any) -> Tensor:
    """Draws with a QwenImagePipeline; see ``tiny_flow.Family``. Without a negative prompt it gets one space."""
    rows, channels, height, width = x.shape
    size = {"height": height * pipeline.vae_scale_factor, "width": width * pipeline.vae_scale_factor}
    tokens = pipeline._pack_latents(x, rows, channels, height, width)
    negatives = [" " if negative is None else negative] * rows
    options = {"output_type": "latent", "num_inference_steps": STEPS, "latents": tokens, **size, **guidance}
    drawn = pipeline(prompts, negative_prompt=negatives, **options).images
    if options["output_type"] != "latent":
        return drawn
    return pipeline._unpack_latents(drawn, size["height"], size["width"], pipeline.vae_scale_factor)[:, :, 0]
