"""The smallest real Stable Diffusion: random weights, a tokenizer with a vocabulary written here; made in a second."""

from typing import Any

import torch

from ddim.models.sd import StableDiffusion

WORDS = ("a", "cat", "tiger", "dog", "next", "to", "mirror", "face", "with", "hat", "red", "and", "on", "mat")
"""Each is one token; any other word is one token a letter."""
LENGTH = 16
"""Tokens that the text encoder takes, start and end among them."""


def tokenizer(length: int = LENGTH) -> Any:
    """A CLIP tokenizer that knows ``WORDS`` and letters."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    vocab = {t: i for i, t in enumerate(["<|startoftext|>", "<|endoftext|>"])}
    merges: list[tuple[str, str]] = []
    for piece in (p for letter in letters for p in (letter, f"{letter}</w>")):
        vocab.setdefault(piece, len(vocab))
    for word in WORDS:
        left, rest = word[0], [*word[1:-1], f"{word[-1]}</w>"] if len(word) > 1 else []
        for piece in rest:
            if (left, piece) not in merges:
                merges.append((left, piece))
            left += piece
            vocab.setdefault(left, len(vocab))
    made = CLIPTokenizer(vocab=vocab, merges=merges)
    made.model_max_length = length
    return made


def autoencoder(size: int = 16, **config: Any) -> Any:
    """An AutoencoderKL that makes latents of ``size`` of pictures twice as wide."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=2 * size,
        **config,
    ).eval()


def pipeline(
    prediction: str = "epsilon", seed: int = 0, *, size: int = 16, length: int = LENGTH, **scheduler: Any
) -> Any:
    """A StableDiffusionPipeline of about 40 thousand weights: latents 4 x ``size`` x ``size``, pictures twice as wide.

    Cross attention at two resolutions (``size`` and half of it), two heads each.

    Args:
        prediction: ``epsilon`` or ``v_prediction``.
        seed: of the weights.
        size: side of the latents.
        length: tokens of the text encoder.
        scheduler: what its config has otherwise than Stable Diffusion's.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    words = tokenizer(length)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=size,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=12,
            attention_head_dim=2,  # what diffusers calls so is the number of heads
        )
        vae = autoencoder(size)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=12,
                intermediate_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=length,
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            )
        )
        # Random weights of this size hardly look at the words: make them look, and not so hard that it is chaos.
        for name, weight in unet.named_parameters():
            if "attn" in name and ("to_q" in name or "to_k" in name):
                weight.data *= 3
            if "attn" in name and "to_out" in name:
                weight.data *= 2
    config = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,
        "prediction_type": prediction,
    }
    made = StableDiffusionPipeline(
        unet=unet.eval(),
        vae=vae,
        text_encoder=text.eval(),
        tokenizer=words,
        scheduler=DDIMScheduler(**{**config, **scheduler}),
        safety_checker=None,
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def model(
    prediction: str = "epsilon", seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> StableDiffusion:
    """The pipeline as the library sees it; ``options`` as for ``pipeline``."""
    return StableDiffusion("tiny-text", pipeline(prediction, seed, **options), dtype=dtype)


def pictures(count: int = 1, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures [count, 3, height, width] in [0, 1]."""
    noise = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear").clamp(0, 1)
