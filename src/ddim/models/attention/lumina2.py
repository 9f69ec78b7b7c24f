"""Attention control for Lumina 2: one sequence of a prompt and the image, whose prompts keep their own lengths."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...editing.plan import SELF, WORDS_FIRST, AttentionSite
from .mmdit import level_of
from .processors import Layer, Told, joined, normed

__all__ = ["ControlledLumina2", "lumina2_layers"]


class ControlledLumina2(Told):
    """A processor for the attention of Lumina 2's blocks that lets a controller compute the attention.

    The tokens of a joint sequence are those of a prompt, followed by those of the image, followed by padding where
    another prompt of the batch is longer. The controller gets them in another order, in which all rows agree: the
    prompt, its padding, the image. Without a controller it computes what diffusers' ``Lumina2AttnProcessor2_0``
    computes.

    It also reads ``lengths`` of the running call, the number of tokens of each prompt.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Computes attention of a sequence [B, S, C]."""
        from diffusers.models.embeddings import apply_rotary_emb

        x = hidden_states
        query, key, value = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        size, dtype = query.shape[-1] // attn.heads, query.dtype
        query, key, value = (y.unflatten(-1, (-1, size)) for y in (query, key, value))
        query, key = normed(attn.norm_q, query), normed(attn.norm_k, key)
        if image_rotary_emb is not None:
            rotated: Any = apply_rotary_emb
            query, key = (rotated(y, image_rotary_emb, use_real=False) for y in (query, key))
        shared = attn.heads // key.shape[2]  # so many heads of queries look at one head of keys
        query, key, value = (
            y.to(dtype).transpose(1, 2)
            for y in (query, key.repeat_interleave(shared, 2), value.repeat_interleave(shared, 2))
        )
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        out = attn.to_out[0](joined(self.attended(query, key, value, mask), query))
        return attn.to_out[1](out)

    def attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Computes attention, in the order of tokens that the controller expects if there is padding."""
        if self.call.get("control") is None or mask is None or not self.layer.words:
            return super().attended(query, key, value, mask)
        order = words_then_image(self.call["lengths"], query.shape[2]).to(query.device)
        rows = order[:, None, :, None].expand_as(query)
        query, key, value = (y.gather(2, rows) for y in (query, key, value))
        out = super().attended(query, key, value, mask.gather(3, order[:, None, None, :]))
        return torch.empty_like(out).scatter(2, rows, out)


def words_then_image(lengths: Sequence[int], tokens: int) -> Tensor:
    """Returns the order of a sequence's tokens in which padding lies between the prompt and the image, [B, S].

    Args:
        lengths: the number of tokens of each prompt; the longest has no padding.
        tokens: the number of tokens S of a sequence, in which padding lies behind the image.
    """
    image = tokens - max(lengths)
    return torch.stack(
        [torch.cat([torch.arange(n), torch.arange(n + image, tokens), torch.arange(n, n + image)]) for n in lengths]
    )


def lumina2_layers(transformer: Any) -> Iterator[Layer]:
    """Yields the attention layers of a Lumina2Transformer2DModel that see the image, in the order in which they run.

    The first blocks, ``noise_refiner``, see the image alone. The blocks of ``context_refiner`` see the prompt alone and
    are no sites.

    Args:
        transformer: the network.
    """
    level, refiners = level_of(int(transformer.config.patch_size)), len(transformer.noise_refiner)
    for k, block in enumerate(transformer.noise_refiner):
        yield Layer(AttentionSite(f"noise_refiner.{k}.attn", SELF, level, k), block.attn, ControlledLumina2)
    for k, block in enumerate(transformer.layers):
        site = AttentionSite(f"layers.{k}.attn", WORDS_FIRST, level, refiners + k, varies=True)
        yield Layer(site, block.attn, ControlledLumina2)
