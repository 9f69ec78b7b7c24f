"""Attention control for transformers with joint attention: SD 3, FLUX, Chroma and Qwen-Image."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..._utils.errors import InputError
from ...editing.attention import AttentionController
from ...editing.plan import IMAGE_FIRST, SELF, WORDS_FIRST, AttentionSite
from .counted import joint_attention
from .processors import Controlled, Layer, attended, heads_of, joined, normed

__all__ = [
    "ControlledFlux",
    "ControlledFlux2Single",
    "ControlledQwen",
    "ControlledSD3",
    "flux2_layers",
    "flux_layers",
    "qwen_layers",
    "sd3_layers",
]


class ControlledSD3(Controlled):
    """A processor for the attention of SD 3's blocks that lets a controller compute the attention.

    The tokens of a joint sequence are those of the image, followed by those of the text. Without a controller it
    computes what diffusers' ``JointAttnProcessor2_0`` and our ``CountedAttention`` compute.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        control: AttentionController | None = None,
        cfg_branch: str | None = None,
    ) -> Any:
        """Computes attention of the image [B, Q, C], and of the text [B, L, C] where a layer has it.

        diffusers passes ``control`` and ``cfg_branch`` on from ``joint_attention_kwargs``.
        """

        def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
            return attended(control, self.layer, query, key, value, bias, cfg_branch)

        return joint_attention(attn, hidden_states, encoder_hidden_states, attention_mask, attend)


class ControlledFlux(Controlled):
    """A processor for the attention of FLUX's blocks that lets a controller compute the attention.

    It serves the double and single blocks of FLUX.1 and Chroma, and the double blocks of FLUX.2. The tokens of a joint
    sequence are those of the text, followed by those of the image. A single block gets them as one sequence. Without a
    controller it computes what diffusers' ``FluxAttnProcessor`` and ``Flux2AttnProcessor`` compute.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        control: AttentionController | None = None,
        cfg_branch: str | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Computes attention of a whole sequence [B, S, C], or of the image and the text separately.

        diffusers passes ``control`` and ``cfg_branch`` on from ``joint_attention_kwargs``.
        """
        from diffusers.models.embeddings import apply_rotary_emb

        image, text = hidden_states, encoder_hidden_states
        query, key, value = (heads_of(y, attn.heads) for y in _own(attn, image))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if text is not None:
            more = [heads_of(y, attn.heads) for y in _added(attn, text)]
            query = torch.cat([attn.norm_added_q(more[0]), query], dim=1)
            key = torch.cat([attn.norm_added_k(more[1]), key], dim=1)
            value = torch.cat([more[2], value], dim=1)
        if image_rotary_emb is not None:
            rotated: Any = apply_rotary_emb
            query, key = (rotated(y, image_rotary_emb, sequence_dim=1) for y in (query, key))
        query, key, value = (y.transpose(1, 2) for y in (query, key, value))
        out = attended(control, self.layer, query, key, value, attention_mask, cfg_branch)
        out = joined(out, query)
        if text is None:
            return out
        said, shown = out[:, : text.shape[1]], out[:, text.shape[1] :]
        return attn.to_out[1](attn.to_out[0](shown.contiguous())), attn.to_add_out(said.contiguous())


class ControlledFlux2Single(Controlled):
    """A processor for the attention of FLUX.2's single blocks that lets a controller compute the attention.

    One projection makes queries, keys and values and what the block's feed-forward part starts from, and one makes the
    output of both. The tokens of the text are followed by those of the image. Without a controller it computes what
    diffusers' ``Flux2ParallelSelfAttnProcessor`` computes.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        control: AttentionController | None = None,
        cfg_branch: str | None = None,
    ) -> Tensor:
        """Computes attention and feed-forward part of a whole sequence [B, S, C].

        diffusers passes ``control`` and ``cfg_branch`` on from ``joint_attention_kwargs``.
        """
        from diffusers.models.embeddings import apply_rotary_emb

        made = attn.to_qkv_mlp_proj(hidden_states)
        width = 3 * attn.inner_dim
        query, key, value = (heads_of(y, attn.heads) for y in made[..., :width].chunk(3, dim=-1))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            rotated: Any = apply_rotary_emb
            query, key = (rotated(y, image_rotary_emb, sequence_dim=1) for y in (query, key))
        query, key, value = (y.transpose(1, 2) for y in (query, key, value))
        out = attended(control, self.layer, query, key, value, attention_mask, cfg_branch)
        out = joined(out, query)
        return attn.to_out(torch.cat([out, attn.mlp_act_fn(made[..., width:])], dim=-1))


class ControlledQwen(Controlled):
    """A processor for the attention of Qwen-Image's blocks that lets a controller compute the attention.

    The tokens of a joint sequence are those of the text, followed by those of the image. Without a controller it
    computes what diffusers' ``QwenDoubleStreamAttnProcessor2_0`` computes.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        control: AttentionController | None = None,
        cfg_branch: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes attention of the image [B, Q, C] and of the text [B, L, C].

        diffusers passes ``control`` and ``cfg_branch`` on from ``attention_kwargs``.
        """
        from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen

        image, text = hidden_states, encoder_hidden_states
        mask = encoder_hidden_states_mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(image.shape[:2])], dim=1)[:, None, None, :]
        of_image = [heads_of(y, attn.heads) for y in _own(attn, image)]
        of_text = [heads_of(y, attn.heads) for y in _added(attn, text)]
        rotated: Any = apply_rotary_emb_qwen
        norms = (attn.norm_q, attn.norm_k), (attn.norm_added_q, attn.norm_added_k)
        for k, (parts, both) in enumerate(zip((of_image, of_text), norms, strict=True)):
            for j in (0, 1):
                parts[j] = normed(both[j], parts[j])
                if image_rotary_emb is not None:
                    parts[j] = rotated(parts[j], image_rotary_emb[k], use_real=False)
        query, key, value = (torch.cat([t, i], dim=1).transpose(1, 2) for t, i in zip(of_text, of_image, strict=True))
        out = attended(control, self.layer, query, key, value, mask, cfg_branch)
        out = joined(out, query)
        said, shown = out[:, : text.shape[1]], out[:, text.shape[1] :]
        shown = attn.to_out[0](shown.contiguous())
        return attn.to_out[1](shown) if len(attn.to_out) > 1 else shown, attn.to_add_out(said.contiguous())


def sd3_layers(transformer: Any) -> Iterator[Layer]:
    """Yields the attention layers of an SD3Transformer2DModel: joint attention, and in some blocks self-attention."""
    level = level_of(int(transformer.config.patch_size))
    for k, block in enumerate(transformer.transformer_blocks):
        name = f"transformer_blocks.{k}"
        yield Layer(AttentionSite(f"{name}.attn", IMAGE_FIRST, level, k), block.attn, ControlledSD3)
        if block.attn2 is not None:
            yield Layer(AttentionSite(f"{name}.attn2", SELF, level, k), block.attn2, ControlledSD3)


def flux_layers(transformer: Any, patch: int = 2, *, reference: bool = False) -> Iterator[Layer]:
    """Yields the attention layers of a FluxTransformer2DModel or a ChromaTransformer2DModel.

    The single blocks follow the double blocks.

    Args:
        transformer: the network.
        patch: along each side, so many pixels of the latent make one token.
        reference: whether the tokens of a reference picture may follow those of the image.
    """
    return _double_and_single(transformer, patch, ControlledFlux, reference)


def flux2_layers(transformer: Any, patch: int = 2) -> Iterator[Layer]:
    """Yields the attention layers of a Flux2Transformer2DModel; see ``flux_layers``. A reference may follow."""
    return _double_and_single(transformer, patch, ControlledFlux2Single, True)


def _double_and_single(
    transformer: Any, patch: int, single: Callable[[AttentionSite], Any], reference: bool
) -> Iterator[Layer]:
    """Yields the attention layers of the double blocks, then those of the single blocks, which ``single`` controls."""
    double, level = len(transformer.transformer_blocks), level_of(patch)
    for part, before, made in (
        ("transformer_blocks", 0, ControlledFlux),
        ("single_transformer_blocks", double, single),
    ):
        for k, block in enumerate(getattr(transformer, part)):
            site = AttentionSite(f"{part}.{k}.attn", WORDS_FIRST, level, before + k, reference=reference)
            yield Layer(site, block.attn, made)


def qwen_layers(transformer: Any, patch: int = 2) -> Iterator[Layer]:
    """Yields the attention layers of a QwenImageTransformer2DModel.

    Args:
        transformer: the network.
        patch: along each side, so many pixels of the latent make one token.
    """
    level = level_of(patch)
    for k, block in enumerate(transformer.transformer_blocks):
        site = AttentionSite(f"transformer_blocks.{k}.attn", WORDS_FIRST, level, k, varies=True)
        yield Layer(site, block.attn, ControlledQwen)


def level_of(patch: int) -> int:
    """Returns how many times a latent is halved to its tokens. Raises InputError for patches of another size."""
    level = max(patch, 1).bit_length() - 1
    if patch != 2**level:
        raise InputError(
            f"tokens of {patch} x {patch} pixels are no power of two, so attention cannot be controlled; use attention "
            "= 'none'.",
            parameter="attention",
        )
    return level


def _own(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values of the image, or of a whole sequence."""
    return attn.to_q(x), attn.to_k(x), attn.to_v(x)


def _added(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values of the text."""
    return attn.add_q_proj(x), attn.add_k_proj(x), attn.add_v_proj(x)
