"""The smallest real pipelines on rectified flow: random weights, tokenizers written here; each is made in a second.

A family of pipelines is a ``Family``: how to make one, and how to draw with it from given latents. The tests of laws
and of parity walk over ``FAMILIES``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import tiny_chroma
import tiny_flux
import tiny_flux2
import torch
from torch import Tensor

import ddim
from ddim import Guidance, SkipLayers
from ddim.models.base import Model

LENGTH = 24
"""Tokens that each CLIP encoder takes, start and end among them; each letter is one."""


@dataclass(frozen=True)
class Family:
    """A family of pipelines, and diffusers as its witness.

    Args:
        make: makes the pipeline from a seed; ``options`` are those of the family's own helper.
        draw: ``(pipeline, noise [N, C, h, w], prompts, negative, **guidance)`` -> latents [N, C, h, w] that the
            pipeline itself samples in ``STEPS`` steps; with ``output_type="pt"`` the pictures of them.
        guidances: what a row is called -> our guidance, and the same as arguments of the pipeline.
        negative: whether the pipeline takes a negative prompt.
        size: (height, width) of the pictures of a non-square row, in pixels.
        options: arguments of ``make``.
        settings: attributes of our model, such as the reference that ``draw`` gives the pipeline.
    """

    make: Callable[..., Any]
    draw: Callable[..., Tensor]
    guidances: Mapping[str, tuple[Guidance, Mapping[str, Any]]]
    negative: bool = True
    size: tuple[int, int] = (16, 48)
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def pipeline(self, seed: int = 0) -> Any:
        """The pipeline, without a progress bar."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = self.make(**self.options)
        made.set_progress_bar_config(disable=True)
        return made

    def model(self, seed: int = 0) -> Model:
        """The pipeline as the library sees it."""
        return self.load(self.pipeline(seed))

    def load(self, pipeline: Any) -> Model:
        """What the library makes of such a pipeline, with the family's settings."""
        model = ddim.load(pipeline)
        for name, value in self.settings.items():
            setattr(model, name, value)
        return model


STEPS = 4


# --- parts ----------------------------------------------------------------------------------------------------------


def autoencoder(channels: int, *, size: int = 16, levels: int = 2, **config: Any) -> Any:
    """An AutoencoderKL whose latents have ``size`` positions along each side; each level but the first halves it."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=size * 2 ** (levels - 1),
        use_quant_conv=False,
        use_post_quant_conv=False,
        **config,
    ).eval()


def louder(network: Any, factors: Mapping[str, float]) -> Any:
    """Multiplies the weights whose names contain a key, so that a tiny random network looks at what it is told."""
    for name, weight in network.named_parameters():
        for part, factor in factors.items():
            if part in name and weight.ndim > 1:
                weight.data *= factor
    return network.eval()


def t5_tokenizer() -> Any:
    """A T5 tokenizer of lower-case letters."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -5.0) for c in "▁abcdefghijklmnopqrstuvwxyz")]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=LENGTH)


def t5_encoder(words: Any, width: int = 32) -> Any:
    """A T5 encoder of two layers for a tokenizer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=len(words), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return louder(T5EncoderModel(config), {"shared": 3.0})


# --- Stable Diffusion 3 ---------------------------------------------------------------------------------------------


def sd3(*, t5: bool = True, size: int = 16, shift: float = 3.0, **config: Any) -> Any:
    """A StableDiffusion3Pipeline: latents 4 x ``size`` x ``size``, pictures twice as wide."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from tiny_sdxl import encoder, tokenizer

    one, two, three = tokenizer(), tokenizer(second=True), t5_tokenizer() if t5 else None
    usual: dict[str, Any] = {
        "sample_size": size,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 26,
        "out_channels": 4,
        "pos_embed_max_size": 24,
        "qk_norm": "rms_norm",
    }
    return StableDiffusion3Pipeline(
        transformer=louder(SD3Transformer2DModel(**{**usual, **config}), {"context": 2.0, "attn": 2.0}),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=autoencoder(4, size=size, scaling_factor=1.5035, shift_factor=0.0609),
        text_encoder=encoder(one, 12, 10),
        tokenizer=one,
        text_encoder_2=encoder(two, 16, 16),
        tokenizer_2=two,
        text_encoder_3=t5_encoder(three) if t5 else None,
        tokenizer_3=three,
    )


def draw(pipeline: Any, x: Tensor, prompts: list[str], negative: str | None, **guidance: Any) -> Tensor:
    """Draws with a StableDiffusion3Pipeline or a ZImagePipeline, which changes its list of prompts; see ``Family``."""
    options = {"output_type": "latent", "num_inference_steps": STEPS, "latents": x, **guidance}
    several = None if negative is None else [negative] * len(prompts)
    size = {"height": x.shape[2] * 2, "width": x.shape[3] * 2}
    return pipeline(list(prompts), negative_prompt=several, **size, **options).images


_CFG = {
    "guided": (Guidance(5.0), {"guidance_scale": 5.0}),
    "unguided": (Guidance(1.0), {"guidance_scale": 1.0}),
}

_SKIPPING = {
    "slg": (
        Guidance(5.0, skip=SkipLayers((0,), 2.8, (0.01, 0.6))),
        {
            "guidance_scale": 5.0,
            "skip_guidance_layers": [0],
            "skip_layer_guidance_scale": 2.8,
            "skip_layer_guidance_start": 0.01,
            "skip_layer_guidance_stop": 0.6,
        },
    ),
}

_FLUX = {
    "embedded": (Guidance(1.0, embedded=3.5), {"guidance_scale": 3.5}),
    "embedded by default": (Guidance(1.0), {}),
    "less embedded": (Guidance(1.0, embedded=1.3), {"guidance_scale": 1.3}),
}
_FLUX_TRUE_CFG = {
    "true cfg": (Guidance(4.0, embedded=3.5), {"guidance_scale": 3.5, "true_cfg_scale": 4.0}),
    "less embedded, true cfg": (Guidance(4.0, embedded=1.3), {"guidance_scale": 1.3, "true_cfg_scale": 4.0}),
}

_QWEN = {
    "guided": (Guidance(4.0), {"true_cfg_scale": 4.0}),
    "unguided": (Guidance(1.0), {"true_cfg_scale": 1.0}),
}
_Z_IMAGE = {
    "guided": (Guidance(5.0), {"guidance_scale": 4.0}),
    "unguided": (Guidance(1.0), {"guidance_scale": 0.0}),
}


_FLUX2 = {
    "guided": (Guidance(4.0), {"guidance_scale": 4.0}),
    "unguided": (Guidance(1.0), {"guidance_scale": 1.0}),
}


def later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that imports this one."""
    return lambda *a, **options: getattr(import_module(module), name)(*a, **options)


z_image = later("tiny_z_image", "z_image")
qwen_image, draw_qwen_image = later("tiny_qwen_image", "qwen_image"), later("tiny_qwen_image", "draw_qwen_image")
lumina2, draw_lumina2 = later("tiny_lumina2", "lumina2"), later("tiny_lumina2", "draw_lumina2")
sana, draw_sana = later("tiny_sana", "sana"), later("tiny_sana", "draw_sana")
sana_dpm = later("tiny_sana", "sana_dpm")


FAMILIES: dict[str, Family] = {
    "sd3": Family(sd3, draw, {**_CFG, **_SKIPPING}),
    "sd3 without t5": Family(sd3, draw, _CFG, options={"t5": False}),
    "sd3.5 dual": Family(sd3, draw, _CFG, options={"dual_attention_layers": (0,)}),
    "flux dev": Family(tiny_flux.pipeline, tiny_flux.draw, _FLUX, negative=False),
    "flux dev true cfg": Family(tiny_flux.pipeline, tiny_flux.draw, _FLUX_TRUE_CFG),
    "flux schnell": Family(
        tiny_flux.pipeline, tiny_flux.draw, {"distilled": (Guidance(1.0), {})}, False, options={"guidance": False}
    ),
    "flux de-distilled": Family(
        tiny_flux.pipeline,
        tiny_flux.draw,
        {
            "true cfg": (Guidance(3.5), {"true_cfg_scale": 3.5}),
            "unguided": (Guidance(1.0), {"true_cfg_scale": 1.0}),
        },
        options={"guidance": False, "dynamic": True},
    ),
    "flux kontext": Family(
        tiny_flux.pipeline,
        partial(tiny_flux.draw_with_reference, reference=tiny_flux.picture()),
        {**_FLUX_TRUE_CFG, **_FLUX},
        options={"kind": "FluxKontextPipeline"},
        settings={"reference": tiny_flux.picture()},
    ),
    "flux kontext without a reference": Family(
        tiny_flux.pipeline,
        partial(tiny_flux.draw_with_reference, reference=None),
        _FLUX,
        negative=False,
        options={"kind": "FluxKontextPipeline"},
    ),
    "flux2 klein": Family(
        tiny_flux2.pipeline, tiny_flux2.draw, {"distilled": (Guidance(1.0), {})}, False, options={"distilled": True}
    ),
    "flux2 base": Family(tiny_flux2.pipeline, tiny_flux2.draw, _FLUX2),
    "flux2 klein with a reference": Family(
        tiny_flux2.pipeline,
        partial(tiny_flux2.draw_with_reference, reference=tiny_flux2.picture()),
        _FLUX2,
        settings={"reference": tiny_flux2.picture()},
    ),
    "chroma": Family(tiny_chroma.pipeline, tiny_chroma.draw, _CFG),
    "qwen-image": Family(qwen_image, draw_qwen_image, _QWEN),
    "z-image": Family(z_image, draw, _Z_IMAGE),
    "z-image turbo": Family(z_image, draw, _Z_IMAGE, options={"shift": 3.0}),
    "lumina2": Family(lumina2, draw_lumina2, _CFG),
    "lumina2 with dynamic shifting": Family(lumina2, draw_lumina2, _CFG, options={"dynamic": True}),
    "sana": Family(sana, draw_sana, _CFG),
    "sana with dpm-solver": Family(sana_dpm, draw_sana, _CFG),
}
"""Every family, some in several forms."""
