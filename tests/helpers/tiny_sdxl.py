"""The smallest real SDXL: random weights, two tokenizers that number letters differently; made in a second."""

from typing import Any

import torch
from tiny_text import autoencoder

from ddim.models.sdxl import StableDiffusionXL

LENGTH = 24
"""Tokens that each text encoder takes, start and end among them; each letter is one."""


def tokenizer(length: int = LENGTH, *, second: bool = False) -> Any:
    """A CLIP tokenizer of lower-case letters and signs; the second one numbers them otherwise and pads with "!"."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = [piece for letter in letters for piece in (letter, f"{letter}</w>")]
    order = ["!", *reversed(pieces[1:])] if second else pieces
    vocab = {piece: k for k, piece in enumerate([*order, "<|startoftext|>", "<|endoftext|>"])}
    made = CLIPTokenizer(vocab=vocab, merges=[], **({"pad_token": "!"} if second else {}))
    made.model_max_length = length
    return made


def encoder(words: Any, width: int, projection: int | None = None, length: int = LENGTH) -> Any:
    """A CLIP text encoder of two layers for a tokenizer; with a projection to the whole prompt's embedding, or without.

    Its words are spread wide, so that prompts are told apart.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=projection or width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    made: Any = CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)
    for name, weight in made.named_parameters():
        if "embedding" in name:
            weight.data *= 25
        if "q_proj.weight" in name or "k_proj.weight" in name or "text_projection" in name:
            weight.data *= 4
    return made.eval()


def unet(size: int = 16, **config: Any) -> Any:
    """SDXL's U-Net with few channels: three levels, no attention at the first, then one and two transformers deep."""
    from diffusers import UNet2DConditionModel

    usual = {
        "sample_size": size,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (1, 2, 2),  # what diffusers calls so is the number of heads
        "use_linear_projection": True,
        "cross_attention_dim": 12 + 16,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 6,
        "projection_class_embeddings_input_dim": 6 * 6 + 10,
    }
    made = UNet2DConditionModel(**{**usual, **config})
    # Random weights of this size hardly look at what they are told: make them look, and not so hard that it is chaos.
    for name, weight in made.named_parameters():
        if "attn2" in name and "to_out" in name and "weight" in name:
            weight.data *= 1.5
        if "add_embedding" in name and "weight" in name:
            weight.data *= 1.2
    return made.eval()


def scheduler(kind: str = "ddim", **config: Any) -> Any:
    """SDXL's noise levels: ``ddim``, or ``euler``, whose config names what DDIM alone reads, as the published one.

    ``edm`` is EDM's preconditioning, as in Playground v2.5.
    """
    from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler

    if kind == "edm":
        return EDMEulerScheduler(**config)
    usual = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    usual |= {"timestep_spacing": "leading", **config}
    if kind == "ddim":
        return DDIMScheduler(**{"set_alpha_to_one": False, "clip_sample": False, **usual})
    return EulerDiscreteScheduler.from_config({"set_alpha_to_one": False, "clip_sample": False, **usual})


def pipeline(kind: str = "ddim", seed: int = 0, *, size: int = 16, zeros: bool = True, **config: Any) -> Any:
    """A StableDiffusionXLPipeline: latents 4 x ``size`` x ``size``, pictures twice as wide.

    Args:
        kind: of the scheduler.
        seed: of the weights.
        size: side of the latents.
        zeros: ``force_zeros_for_empty_prompt``.
        config: what the scheduler's config has otherwise.
    """
    from diffusers import StableDiffusionXLPipeline

    one, two = tokenizer(), tokenizer(second=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = StableDiffusionXLPipeline(
            unet=unet(size),
            vae=autoencoder(size, scaling_factor=0.13025),
            text_encoder=encoder(one, 12),
            text_encoder_2=encoder(two, 16, 10),
            tokenizer=one,
            tokenizer_2=two,
            scheduler=scheduler(kind, **config),
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        )
    made.set_progress_bar_config(disable=True)
    return made


def model(kind: str = "ddim", seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> StableDiffusionXL:
    """The pipeline as the library sees it; ``options`` as for ``pipeline``."""
    return StableDiffusionXL("tiny-sdxl", pipeline(kind, seed, **options), dtype=dtype)


def pictures(count: int = 1, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures [count, 3, height, width] in [0, 1]."""
    noise = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear").clamp(0, 1)
