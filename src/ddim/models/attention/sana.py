"""Attention control for Sana: cross-attention to the words. Its attention among the image's tokens is linear."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ...editing.plan import CROSS, AttentionSite
from .mmdit import level_of
from .processors import Layer, Told, heads_of, joined, normed

__all__ = ["ControlledSana", "sana_layers"]


class ControlledSana(Told):
    """A processor for the cross-attention of Sana's blocks that lets a controller compute the attention.

    Without a controller it computes what diffusers' ``SanaAttnProcessor2_0`` computes.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Computes attention of the image [B, Q, C] to the words [B, L, C]."""
        x, words, mask = hidden_states, encoder_hidden_states, attention_mask
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, words.shape[1], len(words))
            mask = mask.view(len(words), attn.heads, -1, mask.shape[-1])
        query, key, value = attn.to_q(x), attn.to_k(words), attn.to_v(words)
        query, key = normed(attn.norm_q, query), normed(attn.norm_k, key)
        query, key, value = (heads_of(y, attn.heads).transpose(1, 2) for y in (query, key, value))
        out = attn.to_out[0](joined(self.attended(query, key, value, mask), query))
        return attn.to_out[1](out) / attn.rescale_output_factor


def sana_layers(transformer: Any) -> Iterator[Layer]:
    """Yields the cross-attention layers of a SanaTransformer2DModel, in the order in which they run.

    Its other layers compute linear attention, without a map of weights, and are no sites.

    Args:
        transformer: the network.
    """
    level = level_of(int(transformer.config.patch_size))
    for k, block in enumerate(transformer.transformer_blocks):
        site = AttentionSite(f"transformer_blocks.{k}.attn2", CROSS, level, k, varies=True)
        yield Layer(site, block.attn2, ControlledSana)
