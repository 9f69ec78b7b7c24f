"""Writes a small checkpoint in the single-file layout of Stable Diffusion 1.5, with random weights.

    cd ComfyUI && python comfyui_checkpoint.py FILE.safetensors

ComfyUI recognises it as Stable Diffusion 1.5: its U-Net has the widths of that model (320, and 768 for the text), and
two levels with one block each in place of four with two. CLIP and the autoencoder have their full size, which ComfyUI
fixes.
"""

import sys

FILE, sys.argv[1:] = sys.argv[1], ["--cpu"]
sys.path.insert(0, ".")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ops  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

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
    operations=comfy.ops.disable_weight_init,
)
levels = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
levels |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
vae = AutoencoderKL(ddconfig=levels, embed_dim=4)
clip = comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.float32)
parts = {"model.diffusion_model.": unet, "first_stage_model.": vae, "cond_stage_model.": clip}
tensors = {prefix + name: t for prefix, part in parts.items() for name, t in part.state_dict().items()}
torch.manual_seed(0)
for name, tensor in tensors.items():
    fan = tensor[0].numel() if tensor.ndim > 1 else 1
    random = torch.randn(tensor.shape) / fan**0.5
    scale = torch.ones(tensor.shape) if name.endswith("weight") and tensor.ndim == 1 else 0.02 * random
    value = random if tensor.ndim > 1 else scale
    tensors[name] = (0.02 * random if "embedding" in name else value).half()
tensors = {name: t for name, t in tensors.items() if "logit_scale" not in name and "text_projection" not in name}
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FILE)
