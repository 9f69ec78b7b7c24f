"""The joint attention of SD 3 in which one key may count as several equal ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CountedAttention:
    """A processor for diffusers' ``Attention`` that computes joint attention with a bias for each key.

    A key with the bias log n counts as n equal keys. diffusers' own ``JointAttnProcessor2_0`` ignores the bias; without
    one, this processor computes the same.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """Attends from all tokens to all tokens.

        Args:
            attn: the attention layer.
            hidden_states: the tokens of the image, [N, S, D].
            encoder_hidden_states: those of the text, [N, L, D]; None for a layer of the image alone.
            attention_mask: the biases, which broadcast to [N, heads, S + L, S + L]; None for zeros. A layer of the
                image alone ignores them.

        Returns:
            The new tokens of the image, and with text also those of the text. In the last block of the network the
            latter are not used.
        """
        return joint_attention(
            attn, hidden_states, encoder_hidden_states, attention_mask, F.scaled_dot_product_attention
        )


def joint_attention(
    attn: Any, image: Tensor, text: Tensor | None, bias: Tensor | None, attend: Callable[..., Tensor]
) -> Any:
    """Computes the attention layer of a block of SD 3, from all tokens to all tokens: the image's before the text's.

    Args:
        attn, image, text, bias: see ``CountedAttention``.
        attend: called with queries, keys and values, [N, heads, tokens, d], and the bias or None; returns the
            attention's output, [N, heads, tokens, d].
    """

    def heads(x: Tensor, norm: nn.Module | None) -> Tensor:
        x = x.unflatten(2, (attn.heads, -1)).transpose(1, 2)
        return x if norm is None else norm(x)

    query, key = heads(attn.to_q(image), attn.norm_q), heads(attn.to_k(image), attn.norm_k)
    value = heads(attn.to_v(image), None)
    if text is None:
        return attn.to_out[0](attend(query, key, value, None).transpose(1, 2).flatten(2))
    query = torch.cat([query, heads(attn.add_q_proj(text), attn.norm_added_q)], 2)
    key = torch.cat([key, heads(attn.add_k_proj(text), attn.norm_added_k)], 2)
    value = torch.cat([value, heads(attn.add_v_proj(text), None)], 2)
    bias = None if bias is None else bias.to(query.dtype)
    both = attend(query, key, value, bias).transpose(1, 2).flatten(2)
    image, text = both[:, : image.shape[1]], both[:, image.shape[1] :]
    return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


def last_key_counted(count: Tensor, x: Tensor, text: Tensor, patch: int) -> Tensor:
    """Returns the biases with which the last token of the text counts as several, [N, 1, 1, S + L].

    Args:
        count: as how many tokens it counts, [N] or [1].
        x: the latents, [N, C, h, w].
        text: the tokens of the text, [N, L, D].
        patch: along each side, so many pixels of the latent make one token.
    """
    keys = (x.shape[-2] // patch) * (x.shape[-1] // patch) + text.shape[1]
    return F.pad(count.log().view(-1, 1, 1, 1), (keys - 1, 0))
