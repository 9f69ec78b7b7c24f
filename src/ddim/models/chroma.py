"""The adapter for Chroma in the diffusers format (Lodestone Rock 2025, huggingface.co/lodestones/Chroma1-HD)."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._utils.silence import quiet
from ..core.conditioning import TEXT, TEXT_MASK, Conditioning
from ..editing.tokens import Tokens, tokens_of
from .attention.mmdit import flux_layers
from .attention.processors import Layer
from .flow import PackedFlowModel, packed, unpacked
from .flux import position_ids
from .tokens import warn_if_cut

_TOKENS = 512
"""The number of tokens that the text encoder is given, the default ``max_sequence_length`` of the pipeline."""


class Chroma(PackedFlowModel):
    """A Chroma model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    Chroma was made from FLUX.1-schnell and has its blocks, its autoencoder and its packing. A T5 encoder alone
    embeds each prompt, and does not look at the padding. ``text_mask`` is true for the tokens of the prompt and for the
    first token of padding. The network is sampled with classifier-free guidance; the unconditional branch is the
    encoded negative prompt, by default the empty one.

    What the mask does inside the network is decided by the pipeline of the installed diffusers, which prepares it for
    every call. That of diffusers 0.42 adds the mask, 1 or 0, to the scores of the attention.
    """

    family: ClassVar[str] = "Chroma text-to-image"
    pipeline_class: ClassVar[str] = "ChromaPipeline"
    usual_guidance: ClassVar[float] = 5.0
    usual_steps: ClassVar[int] = 35
    conditions: ClassVar[tuple[str, ...]] = (TEXT, TEXT_MASK)
    capturable: ClassVar[bool] = False  # each call of the network copies a tensor from the CPU
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("ChromaTransformer2DModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": ("T5TokenizerFast", "T5Tokenizer"),
    }

    def longest_prompt(self) -> int:
        """Returns the number of tokens that the text encoder takes, without the end token."""
        return _TOKENS - 1

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of ``text`` and ``text_mask`` for one prompt.

        Raises:
            InputError: the transformer takes embeddings of another size than the text encoder makes.
        """
        made, taken = self.pipeline.text_encoder.config.d_model, self.network.config.joint_attention_dim
        self.check_width(made, taken)
        return {TEXT: (1, _TOKENS, taken), TEXT_MASK: (1, _TOKENS)}

    # --- prompts ----------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts to ``text`` [N, L, D] and ``text_mask`` [N, L]. Warns (DDIMWarning) if a prompt is cut."""
        for prompt in prompts:
            warn_if_cut(self.tokens(prompt), self.tokenizer, self.name)
        with torch.no_grad(), quiet():
            text, _, mask, *_ = self.pipeline.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, max_sequence_length=_TOKENS
            )
        return Conditioning({TEXT: text.to(self.state_dtype), TEXT_MASK: mask > 0})

    def tokens(self, prompt: str) -> Tokens:
        """Returns the tokens that the text encoder gets, and the positions of the words among them."""
        with quiet():
            convert = partial(self.pipeline.maybe_convert_prompt, tokenizer=self.tokenizer)
            return tokens_of(self.tokenizer, prompt, _TOKENS, convert)

    # --- calls ------------------------------------------------------------------------------------------------------

    def attention_layers(self) -> Iterable[Layer]:
        """Returns the attention layers of the transformer; see ``FlowModel.attention_layers``."""
        return flux_layers(self.network, self.patch)

    def call_network(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        control: dict[str, Any] | None,
    ) -> Tensor:
        """Calls a transformer with the latents packed into tokens; see ``PipelineModel.call_network``."""
        (count, _, height, width), text, tokens = x.shape, conditions[TEXT], packed(x)
        mask = self.pipeline._prepare_attention_mask(
            batch_size=count,
            sequence_length=tokens.shape[1],
            dtype=x.dtype,
            attention_mask=conditions[TEXT_MASK].to(x.dtype),
        )
        output = network(
            hidden_states=tokens,
            timestep=timestep.expand(count),
            encoder_hidden_states=text,
            txt_ids=x.new_zeros(text.shape[1], 3),
            img_ids=position_ids(height // 2, width // 2, 0, x),
            attention_mask=mask,
            joint_attention_kwargs=control,
            return_dict=False,
        )[0]
        return unpacked(output, height, width)
