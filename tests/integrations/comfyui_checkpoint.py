"""Writes a small model with random weights in a layout that ComfyUI recognises by its tensors.

    cd ComfyUI && python comfyui_checkpoint.py KIND FILE.safetensors

KIND is one of:

- ``sd1``: a checkpoint of Stable Diffusion 1.5. Its U-Net has the widths of that model (320, and 768 for the text), and
  two levels with one block each in place of four with two. CLIP and the autoencoder have their full size, which ComfyUI
  fixes.
- ``sd3``: the transformer of Stable Diffusion 3.5, on rectified flow. ComfyUI reads depth, width and heads from the
  width of the first layer, so that this one has two blocks of width 128.
- ``wan``: the transformer of Wan 2.1, on rectified flow, whose latents have an axis of frames: one block of width 128.
"""

import sys

KIND, FILE = sys.argv[1:]
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, ".")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

from typing import Any  # noqa: E402

import comfy.ops  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

LAYERS = comfy.ops.disable_weight_init


def stable_diffusion_1() -> dict[str, Any]:
    import comfy.sd1_clip
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[1, 1],
        channel_mult=(1, 2),
        transformer_depth=[1, 1],
        transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 1],
        num_heads=8,
        context_dim=768,
        use_spatial_transformer=True,
        legacy=False,
        operations=LAYERS,
    )
    levels = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    levels |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    vae = AutoencoderKL(ddconfig=levels, embed_dim=4)
    clip = comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.float32)
    return {"model.diffusion_model.": unet, "first_stage_model.": vae, "cond_stage_model.": clip}


def stable_diffusion_3() -> dict[str, Any]:
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    text = {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}}
    network = MMDiT(
        input_size=None,  # type: ignore[arg-type]
        in_channels=16,
        out_channels=16,
        depth=2,
        adm_in_channels=32,
        context_embedder_config=text,
        num_patches=64,
        pos_embed_max_size=8,
        qk_norm="rms",
        operations=LAYERS,
    )
    return {"": network}


def wan() -> dict[str, Any]:
    from comfy.ldm.wan.model import WanModel

    sizes = {"dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 1}
    return {"": WanModel(model_type="t2v", operations=LAYERS, **sizes)}


parts = {"sd1": stable_diffusion_1, "sd3": stable_diffusion_3, "wan": wan}[KIND]()
tensors = {prefix + name: t for prefix, part in parts.items() for name, t in part.state_dict().items()}
torch.manual_seed(0)
for name, tensor in tensors.items():
    fan = tensor[0].numel() if tensor.ndim > 1 else 1
    random = torch.randn(tensor.shape) / fan**0.5
    scale = torch.ones(tensor.shape) if name.endswith("weight") and tensor.ndim == 1 else 0.02 * random
    value = random if tensor.ndim > 1 else scale
    tensors[name] = (0.02 * random if "token_embedding" in name or "position_embedding" in name else value).half()
tensors = {name: t for name, t in tensors.items() if "logit_scale" not in name and "text_projection" not in name}
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FILE)
