"""Attention control in ComfyUI's U-Nets: finds their attention layers, and lets a controller compute them.

A transformer block of ComfyUI's U-Net calls a function in place of its attention if the call's ``patches_replace`` has
one for it; nothing of the network is changed.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ddim import InputError
from ddim.editing.attention import AttentionController
from ddim.editing.plan import CROSS, SELF, AttentionSite

Place = tuple[str, int, int]
"""(part of the U-Net, index of its block, index of the transformer block), the key of ``patches_replace``."""
Patches = dict[str, dict[Place, Callable[..., Tensor]]]


def sites_of(network: Any) -> dict[tuple[str, Place], AttentionSite]:
    """Returns the attention layers of a U-Net by ("attn1" or "attn2", place), in the order in which they run.

    Raises:
        InputError: the network is no U-Net with cross-attention.
    """
    if not all(hasattr(network, part) for part in ("input_blocks", "middle_block", "output_blocks")):
        raise InputError(
            f"the network of this model ({type(network).__name__}) is no U-Net, and only a U-Net's attention can be "
            "controlled here; use the kind 'none'.",
            parameter="control",
        )
    found: dict[tuple[str, Place], AttentionSite] = {}
    for index, (place, level, block) in enumerate(_blocks(network)):
        for part, keys in (("attn1", SELF), ("attn2", CROSS)):
            if getattr(block, part, None) is not None:
                name = f"{'.'.join(map(str, place))}.{part}"
                found[part, place] = AttentionSite(name, keys, level, index)
    if not any(part == "attn2" for part, _ in found):
        raise InputError(
            "the U-Net has no cross-attention, so that there is nothing to control; use the kind 'none'.",
            parameter="control",
        )
    return found


def _blocks(network: Any) -> Iterator[tuple[Place, int, Any]]:
    """Yields the transformer blocks with their places, and how often the latent is halved before each."""
    level = 0
    parts = (("input", network.input_blocks), ("middle", [network.middle_block]), ("output", network.output_blocks))
    for part, blocks in parts:
        for number, layers in enumerate(blocks):
            for layer in layers:
                for k, block in enumerate(getattr(layer, "transformer_blocks", ())):
                    yield (part, number, k), level, block
                kind = type(layer).__name__
                level += (kind == "Downsample") - (kind == "Upsample")


def feature_site(network: Any) -> str:
    """Returns the name of the convolution in a U-Net whose output plug-and-play takes over.

    It is that of ``ddim.models.attention.unet.feature_sites`` under ComfyUI's names: the last one of the second
    residual block in the second level of the decoder.

    Raises:
        InputError: the decoder has no such block.
    """
    blocks: Any = getattr(network, "output_blocks", ())
    ends = [k for k, layers in enumerate(blocks) if any(type(layer).__name__ == "Upsample" for layer in layers)]
    second = ends[0] + 2 if ends else len(blocks)
    if second > (ends[1] if len(ends) > 1 else len(blocks) - 1):
        raise InputError(
            f"the decoder of this network ({type(network).__name__}) has no second level with two residual blocks, "
            "whose features plug-and-play takes over; use another kind, such as 'masactrl'.",
            parameter="control",
        )
    return f"output_blocks.{second}.0.out_layers.3"


def patches_of(sites: dict[tuple[str, Place], AttentionSite], controller: AttentionController, branch: str) -> Patches:
    """Returns the functions that compute the attention of one call, for ``patches_replace``.

    Args:
        sites: the attention layers.
        controller: what computes them.
        branch: the branch of guidance of the call, ``"cond"`` or ``"uncond"``.
    """
    patches: Patches = {"attn1": {}, "attn2": {}}
    for (part, place), site in sites.items():
        patches[part][place] = _attention(site, controller, branch)
    return patches


def _attention(site: AttentionSite, controller: AttentionController, branch: str) -> Callable[..., Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        heads = options["n_heads"]
        query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        out = controller.attend(site, query, key, value, None, branch)
        return out.transpose(1, 2).flatten(2).to(query.dtype)

    return attend
