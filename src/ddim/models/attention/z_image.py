"""Attention control for Z-Image: one sequence of image and caption, each padded to a multiple of 32 tokens."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...editing.plan import IMAGE_FIRST, SELF, AttentionSite
from .mmdit import level_of
from .processors import Layer, Told, heads_of, joined, normed

__all__ = ["ControlledZImage", "z_image_layers"]

_MULTIPLE = 32
"""The transformer pads the tokens of an image, and those of a caption, to a multiple of this."""


class ControlledZImage(Told):
    """A processor for the attention of Z-Image's blocks that lets a controller compute the attention.

    The tokens of a joint sequence are those of the image, followed by those of the caption. Without a controller it
    computes what diffusers' ``ZSingleStreamAttnProcessor`` computes.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        """Computes attention of a sequence [B, S, C]."""
        x = hidden_states
        query, key, value = (heads_of(y, attn.heads) for y in (attn.to_q(x), attn.to_k(x), attn.to_v(x)))
        query, key = normed(attn.norm_q, query), normed(attn.norm_k, key)
        if freqs_cis is not None:
            query, key = _rotated(query, freqs_cis), _rotated(key, freqs_cis)
        mask = attention_mask
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None, :]
        query, key, value = (y.transpose(1, 2) for y in (query, key, value))
        out = attn.to_out[0](joined(self.attended(query, key, value, mask), query))
        return attn.to_out[1](out) if len(attn.to_out) > 1 else out


def z_image_layers(transformer: Any, patch: int = 2) -> Iterator[Layer]:
    """Yields the attention layers of a ZImageTransformer2DModel that see the image, in the order in which they run.

    The first blocks, ``noise_refiner``, see the image alone. The blocks of ``context_refiner`` see the caption alone
    and are no sites.

    Args:
        transformer: the network.
        patch: along each side, so many pixels of the latent make one token.
    """
    level, refiners = level_of(patch), len(transformer.noise_refiner)
    for k, block in enumerate(transformer.noise_refiner):
        site = AttentionSite(f"noise_refiner.{k}.attention", SELF, level, k, multiple=_MULTIPLE)
        yield Layer(site, block.attention, ControlledZImage)
    for k, block in enumerate(transformer.layers):
        name = f"layers.{k}.attention"
        site = AttentionSite(name, IMAGE_FIRST, level, refiners + k, multiple=_MULTIPLE, varies=True)
        yield Layer(site, block.attention, ControlledZImage)


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Applies rotary position embeddings, complex numbers [B, S, d / 2], to [B, S, heads, d], in float32."""
    with torch.amp.autocast("cuda", enabled=False):
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * angles.unsqueeze(2)).flatten(3).type_as(x)
