"""Writes a tiny pipeline as one file in the layout of the original repositories: what diffusers converts, backwards."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_EMBEDDINGS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _renamed(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name


def unet(network: Any) -> dict[str, Tensor]:
    """The tensors of a UNet2DConditionModel, by their original names."""
    each = network.config.layers_per_block
    found: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        part = re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions|\w+samplers)\.(\d+)\.(.*)", name)
        if not part or name.startswith("mid_block.attentions"):
            found[_renamed(name, _EMBEDDINGS)] = tensor
            continue
        side, block, kind, index = part[1], int(part[2] or 0), part[3], int(part[4])
        rest = _renamed(part[5], _RESNET) if kind == "resnets" else part[5]
        if side == "mid":
            found[f"middle_block.{2 * index}.{rest}"] = tensor
        elif kind == "downsamplers":
            found[f"input_blocks.{(block + 1) * (each + 1)}.0.{rest.replace('conv', 'op')}"] = tensor
        elif kind == "upsamplers":
            attends = hasattr(network.up_blocks[block], "attentions")
            found[f"output_blocks.{block * (each + 1) + each}.{1 + attends}.{rest}"] = tensor
        else:
            place = block * (each + 1) + index + (side == "down")
            found[f"{'input' if side == 'down' else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{rest}"] = (
                tensor
            )
    return found


def autoencoder(network: Any) -> dict[str, Tensor]:
    """The tensors of an AutoencoderKL, by their original names."""
    last = len(network.config.block_out_channels) - 1
    found: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        coder, _, rest = name.partition(".")
        if part := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|\w+samplers)\.(\d+)\.(.*)", rest):
            block = int(part[2]) if part[1] == "down" else last - int(part[2])
            own = f"block.{part[4]}" if part[3] == "resnets" else part[3].removesuffix("rs") + "r"
            own = own.replace("downsampler", "downsample").replace("upsampler", "upsample")
            rest = f"{part[1]}.{block}.{own}.{part[5].replace('conv_shortcut', 'nin_shortcut')}"
        elif part := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.*)", rest):
            rest = f"mid.block_{int(part[1]) + 1}.{part[2]}"
        elif rest.startswith("mid_block.attentions.0."):
            rest = "mid.attn_1." + _renamed(rest.removeprefix("mid_block.attentions.0."), _ATTENTION)
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        found[f"{coder}.{rest.replace('conv_norm_out', 'norm_out')}"] = tensor
    return found


def clip(network: Any) -> dict[str, Tensor]:
    """The tensors of a CLIPTextModel as older versions of transformers name them."""
    return {f"text_model.{k.removeprefix('text_model.')}": tensor for k, tensor in network.state_dict().items()}


def open_clip(network: Any) -> dict[str, Tensor]:
    """The tensors of a CLIPTextModelWithProjection as open_clip names them."""
    ours = network.state_dict()
    found = {
        "positional_embedding": ours["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": ours["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": ours["text_model.final_layer_norm.weight"],
        "ln_final.bias": ours["text_model.final_layer_norm.bias"],
        "text_projection": ours["text_projection.weight"].T,
    }
    for name, tensor in ours.items():
        if part := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name):
            block = f"transformer.resblocks.{part[1]}"
            if not re.search("[qkv]_proj", name):
                found[f"{block}.{_OPEN_CLIP[part[2]]}.{part[3]}"] = tensor
            elif "q_proj" in name:
                all_three = [ours[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
                found[f"{block}.attn.in_proj_{part[3]}"] = torch.cat(all_three)
    return found


def tensors(pipeline: Any) -> dict[str, Tensor]:
    """The tensors of a StableDiffusionPipeline or a StableDiffusionXLPipeline, by their original names."""
    parts = {"model.diffusion_model.": unet(pipeline.unet), "first_stage_model.": autoencoder(pipeline.vae)}
    if hasattr(pipeline, "text_encoder_2"):
        parts["conditioner.embedders.0.transformer."] = clip(pipeline.text_encoder)
        parts["conditioner.embedders.1.model."] = open_clip(pipeline.text_encoder_2)
    else:
        parts["cond_stage_model.transformer."] = clip(pipeline.text_encoder)
    return {f"{begin}{name}": tensor for begin, part in parts.items() for name, tensor in part.items()}


def write(pipeline: Any, file: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes a pipeline as one file."""
    save_file({name: tensor.to(dtype).contiguous().clone() for name, tensor in tensors(pipeline).items()}, file)
    return file


def configs(pipeline: Any, folder: Path) -> Path:
    """Writes the folder of a pipeline without its weights."""
    pipeline.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder
