"""Custom nodes for the integration tests: the bundled model emoji as MODEL, CLIP and VAE of ComfyUI, and prompts.

ComfyUI recognises a checkpoint by the shapes of Stable Diffusion's U-Net, which the small emoji model does not have. So
the first node names its shapes, and loads its weights into ComfyUI's own U-Net by ComfyUI's table of names. The second
stands where the large text encoders of models on rectified flow stand.
"""

import zlib
from pathlib import Path
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors.torch import load_file

import ddim
from ddim import models

SCALE, GROUPS = 0.42286, 16
BUNDLED = Path(models.__file__).parent / "bundled" / "emoji"


class Half(int):
    """5 / 2 as a multiplier of channels, for which ComfyUI has whole numbers only."""

    def __mul__(self, other: int) -> int:
        return 5 * other // 2

    __rmul__ = __mul__


UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": (1, 2, Half(2)),
    "transformer_depth": [0, 1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "num_heads": 4,
    "num_head_channels": -1,
    "context_dim": 192,
    "use_spatial_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
}


class Latents(comfy.latent_formats.SD15):
    def __init__(self) -> None:
        super().__init__(SCALE)


class Config(comfy.supported_models_base.BASE):
    unet_extra_config: ClassVar[dict[str, Any]] = {}
    latent_format = Latents


class Clip:
    """Stands where a CLIP stands."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def tokenize(self, text: str, **others: Any) -> dict[str, Any]:
        return {"l": [[(token, 1.0) for token in self.model.tokens(text).row]], "text": text}

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any], **others: Any) -> list[Any]:
        cond = self.model.encode_prompt([tokens["text"]]).tensors["text"]
        return [[cond.clone(), {"pooled_output": None}]]


class Vae:
    """Stands where a VAE stands."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def spacial_compression_encode(self) -> int:
        return 4

    def encode(self, pixels: Any) -> Any:
        return self.model.encode(pixels[..., :3].movedim(-1, 1)) / SCALE

    def decode(self, samples: Any) -> Any:
        return self.model.decode(samples * SCALE).movedim(1, -1)


def fresh_lists() -> dict[str, list[int]]:
    return {key: list(value) for key, value in UNET.items() if isinstance(value, list)}


def network(dtype: torch.dtype) -> Any:
    """The emoji model's U-Net as a ``BaseModel`` of ComfyUI."""
    config = Config({**UNET, "dtype": dtype})
    if dtype != torch.float32:
        config.set_inference_dtype(dtype, torch.float32)
    # The lists are used up by ComfyUI's constructor.
    config.unet_config = {**config.unet_config, **fresh_lists()}
    base = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.V_PREDICTION, unet_model=UNetModel)
    for module in base.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = GROUPS
    weights = load_file(BUNDLED / "unet" / "diffusion_pytorch_model.safetensors")
    names = comfy.utils.unet_to_diffusers({**UNET, **fresh_lists()})
    renamed = {names[key]: value for key, value in weights.items()}
    base.diffusion_model.load_state_dict({k: v.to(dtype) for k, v in renamed.items()}, strict=True)
    return base.eval()


class LoadEmoji:
    CATEGORY, FUNCTION = "ddim/tests", "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "lora": ("FLOAT", {"default": 0.0, "tooltip": "the strength of a patch of some weights"}),
                "weights": (["float32", "float8_e4m3fn"],),
            }
        }

    def load(self, lora: float, weights: str) -> tuple[Any, Any, Any]:
        devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
        patcher = comfy.model_patcher.ModelPatcher(network(getattr(torch, weights)), *devices)
        if lora:
            source = torch.Generator().manual_seed(0)
            state = patcher.model.state_dict()
            keys = [key for key in state if key.endswith("attn2.to_v.weight")]
            patches = {k: ("diff", (0.05 * torch.randn(state[k].shape, generator=source),)) for k in keys}
            patcher.add_patches(patches, lora)
        model = ddim.load("emoji")
        return patcher, Clip(model), Vae(model)


class Prompt:
    """A CONDITIONING of random numbers that depend on the text: ``tokens`` of some width, and a pooled vector."""

    CATEGORY, FUNCTION = "ddim/tests", "prompt"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sizes = {name: ("INT", {"default": 8, "max": 4096}) for name in ("tokens", "width", "pooled")}
        return {"required": {"text": ("STRING", {}), **sizes}}

    def prompt(self, text: str, tokens: int, width: int, pooled: int) -> tuple[list[Any]]:
        source = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        about = {"pooled_output": torch.randn(1, pooled, generator=source)}
        return ([[torch.randn(1, tokens, width, generator=source), about]],)


NODE_CLASS_MAPPINGS = {"LoadEmojiForTests": LoadEmoji, "PromptForTests": Prompt}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadEmojiForTests": "Load emoji (tests)", "PromptForTests": "Prompt (tests)"}
