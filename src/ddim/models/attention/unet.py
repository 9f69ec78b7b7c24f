"""Attention control for U-Nets: finds the attention layers, and gives them a processor that follows a controller."""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ..._utils.errors import InputError
from ...editing.attention import AttentionController
from ...editing.plan import CROSS, SELF, AttentionSite
from .processors import Controlled, Layer, attended, exchanged, heads_of, joined, normed, refuse_others

__all__ = ["ControlledAttention", "controlled", "feature_sites", "following_features", "sites"]


class ControlledAttention(Controlled):
    """A processor for diffusers' ``Attention`` that lets a controller compute the attention.

    Without a controller it computes what diffusers' ``AttnProcessor2_0`` computes.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        control: AttentionController | None = None,
        cfg_branch: str | None = None,
    ) -> Tensor:
        """Computes attention, [B, Q, C] or [B, C, H, W] to the same shape.

        diffusers passes ``control`` and ``cfg_branch`` on from ``cross_attention_kwargs``.
        """
        x, context = hidden_states, encoder_hidden_states
        if attn.spatial_norm is not None:
            x = attn.spatial_norm(x, temb)
        picture = x.shape if x.ndim == 4 else None
        if picture is not None:
            x = x.flatten(2).transpose(1, 2)
        mask = attention_mask
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, (x if context is None else context).shape[1], len(x))
            mask = mask.view(len(x), attn.heads, -1, mask.shape[-1])
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        if context is None:
            context = x
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = (
            heads_of(y, attn.heads).transpose(1, 2) for y in (attn.to_q(x), attn.to_k(context), attn.to_v(context))
        )
        query, key = normed(attn.norm_q, query), normed(attn.norm_k, key)
        out = attended(control, self.layer, query, key, value, mask, cfg_branch)
        out = attn.to_out[1](attn.to_out[0](joined(out, query)))
        if picture is not None:
            out = out.transpose(-1, -2).reshape(picture)
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def sites(unet: Any) -> tuple[AttentionSite, ...]:
    """Returns the attention layers of a UNet2DConditionModel's transformer blocks, in the order of its modules.

    Raises:
        InputError: the U-Net has no cross-attention, or a processor that does more than plain attention.
    """
    layers = list(_layers(unet))
    refuse_others(layers, "call unet.set_default_attn_processor() first")
    if not any(layer.site.words for layer in layers):
        raise InputError(
            "the U-Net has no cross-attention layers in transformer blocks, so there is nothing to control.",
            parameter="attention",
        )
    return tuple(layer.site for layer in layers)


@contextmanager
def controlled(unet: Any) -> Iterator[None]:
    """Inside the block, the attention layers have our processor; afterwards each has its own again."""
    with exchanged(_layers(unet)):
        yield


def feature_sites(unet: Any) -> tuple[str, ...]:
    """Returns the name of the convolution whose output plug-and-play takes over (section 4.1 of arXiv 2211.12572).

    It is the last one of the second residual block in the second level of the decoder, before the block adds its input:
    the fifth of twelve residual blocks of Stable Diffusion's decoder.

    Raises:
        InputError: the decoder has no such block.
    """
    name = "up_blocks.1.resnets.1.conv2"
    try:
        unet.get_submodule(name)
    except AttributeError:
        raise InputError(
            f"the U-Net has no {name}, whose features plug-and-play takes over; use another kind of attention control.",
            parameter="attention",
        ) from None
    return (name,)


@contextmanager
def following_features(unet: Any, control: Mapping[str, Any] | None) -> Iterator[None]:
    """Inside the block, which is one call of the U-Net, the features of the targets follow their source.

    The U-Net has forward hooks during the call only, so that other calls are computed as without attention control. A
    CUDA graph of the call contains what they compute.

    Args:
        unet: the network.
        control: the controller of the call and the branch of guidance of its rows, as its processors get them; or None.
    """
    with ExitStack() as hooks:
        if control is not None and control["control"].features:
            controller, branch = control["control"], control["cfg_branch"]
            for name in controller.plan.features:

                def follow(module: Any, inputs: Any, output: Tensor, name: str = name) -> Tensor:
                    return controller.follow_features(name, output, branch)

                hooks.callback(unet.get_submodule(name).register_forward_hook(follow).remove)
        yield


def _layers(unet: Any) -> Iterator[Layer]:
    """Yields the attention layers of the transformer blocks, in the order of the U-Net's modules."""
    depth = len(unet.down_blocks)
    blocks = {n: m for n, m in unet.named_modules() if type(m).__name__ == "BasicTransformerBlock"}
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    running = sorted(blocks, key=lambda name: order.get(name.split(".")[0], 1))  # its modules are listed otherwise
    for name, block in blocks.items():
        for part in ("attn1", "attn2"):
            attention = getattr(block, part, None)
            if attention is not None:
                keys = CROSS if attention.is_cross_attention else SELF
                site = AttentionSite(f"{name}.{part}", keys, _level(name, depth), running.index(name))
                yield Layer(site, attention, ControlledAttention)


def _level(name: str, depth: int) -> int:
    """Returns how often the resolution has been halved at a block of a U-Net with ``depth`` down blocks."""
    found = re.match(r"(down|up)_blocks\.(\d+)\.", name)
    if found is None:
        return depth - 1
    return int(found[2]) if found[1] == "down" else depth - 1 - int(found[2])
