"""The adapter for Stable Diffusion 3 and 3.5 in the diffusers format (Esser et al. 2024, arXiv 2403.03206)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._utils.errors import InputError
from .._utils.silence import quiet
from ..core.conditioning import POOLED, TEXT, Conditioning
from ..core.schedule import Clock
from ..editing.tokens import JoinedTokens, Tokens, agreed, padding, tokens_of
from .attention.counted import CountedAttention, last_key_counted
from .attention.mmdit import sd3_layers
from .attention.processors import Layer
from .flow import FlowModel
from .info import ModelInfo
from .pixel import sides_of
from .tokens import longest_prompt, warn_if_cut

T5_TOKENS = 256
"""The number of tokens that the pipeline gives the T5 encoder, its default ``max_sequence_length``."""


class StableDiffusion3(FlowModel):
    """A Stable Diffusion 3 or 3.5 model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    Two CLIP encoders and a T5 encoder embed each prompt. The T5 encoder may be absent; the network then sees zeros in
    place of its tokens. The unconditional branch is always the encoded negative prompt, by default the empty one.
    """

    family: ClassVar[str] = "SD3 text-to-image"
    pipeline_class: ClassVar[str] = "StableDiffusion3Pipeline"
    usual_guidance: ClassVar[float] = 7.0
    spacing: ClassVar[str] = "linspace"
    clock: ClassVar[Clock | None] = None
    conditions: ClassVar[tuple[str, ...]] = (TEXT, POOLED)
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("SD3Transformer2DModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_3": ("T5TokenizerFast", "T5Tokenizer"),
    }
    optional: ClassVar[frozenset[str]] = frozenset({"text_encoder_3", "tokenizer_3"})

    counts_zeros: bool = False
    """Whether one token stands for all zeros that take the place of T5's tokens.

    The zeros are equal and have no positions, so that they stay equal in every block. One of them, which counts as
    many times as there are zeros, gives the same image except for rounding, with fewer tokens. In half precision the
    logarithm of that number would be rounded too much, and the network gets all zeros.
    """

    def convert_layout(self) -> None:
        """Lets one token stand for the zeros that take the place of T5's tokens; see ``counts_zeros``."""
        if self.pipeline.text_encoder_3 is None and self.dtype in (torch.float32, torch.float64):
            self.network.set_attn_processor(CountedAttention())
            self.counts_zeros = True

    @property
    def _zeros(self) -> int:
        """The number of zeros that the network gets behind the tokens of CLIP; 0 with T5."""
        if self.pipeline.text_encoder_3 is not None:
            return 0
        return 1 if self.counts_zeros else T5_TOKENS

    @property
    def engine(self) -> str:
        """How the network computes, as far as it changes the last bits of its output."""
        return f"{super().engine}, zeros counted" if self.counts_zeros else super().engine

    @property
    def patch(self) -> int:  # type: ignore[override]
        """Along each side, so many pixels of the latent make one token."""
        return int(self.network.config.patch_size)

    def read_info(self, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
        """Collects the facts about the model."""
        info, positions = super().read_info(name, device, dtype), self.network.config.pos_embed_max_size or 0
        layers = len(self.network.transformer_blocks)
        return replace(info, largest=int(positions * info.multiple), skip_layers=layers)

    def latent_sides(self) -> tuple[int, int]:
        """Returns the ``sample_size`` of the transformer."""
        return sides_of(self.network.config.sample_size, type(self).__name__)

    def longest_prompt(self) -> int:
        """Returns the number of tokens that the longest of the text encoders takes."""
        clip = longest_prompt(self.tokenizer, int(self.encoders[0].config.max_position_embeddings)) - 2
        return clip if self.pipeline.text_encoder_3 is None else T5_TOKENS - 1

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of ``text`` and ``pooled`` for one prompt, from the configs of the text encoders."""
        clips = [encoder.config for encoder in self.encoders[:2]]
        length = self.pipeline.tokenizer_max_length + (T5_TOKENS if len(self.encoders) > 2 else 0)
        width = self.network.config.joint_attention_dim
        made = [sum(c.hidden_size for c in clips), *(e.config.d_model for e in self.encoders[2:])]
        if made[0] > width or any(d != width for d in made[1:]):
            raise InputError(
                f"the text encoders of {self.name!r} make embeddings of {' and '.join(map(str, made))} numbers, which "
                f"do not fit the {width} that its transformer takes.",
                parameter="model",
            )
        return {TEXT: (1, length, width), POOLED: (1, sum(c.projection_dim for c in clips))}

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts to ``text`` [N, L, D] and ``pooled`` [N, P].

        The tokens of ``text`` are those of CLIP, followed by those of T5 if there is a T5 encoder. Warns (DDIMWarning)
        if a prompt is too long for T5, or for CLIP without T5, and says where it is cut.

        Raises:
            InputError: an image of this size has more tokens than the network has positions.
        """
        self._check_size(size or self.picture[1:])
        for prompt in prompts:
            warn_if_cut(self._longest(prompt), self.tokenizers[-1], self.name)
        with torch.no_grad(), quiet():
            text, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
            )
        if self.pipeline.text_encoder_3 is None:
            text = text[:, : self.pipeline.tokenizer_max_length]  # zeros follow, which call_network puts back
        return Conditioning({TEXT: text.to(self.state_dtype), POOLED: pooled.to(self.state_dtype)})

    def tokens(self, prompt: str) -> JoinedTokens:
        """Tokenizes a prompt as diffusers' pipeline does, and finds the positions of its words among the tokens.

        The tokens are those of CLIP, followed by those of T5, or by zeros without T5. A word has tokens in both, and
        one that CLIP's limit cuts off has those of T5.

        Raises:
            InputError: the two CLIP tokenizers put the words at different positions.
        """
        read = [self._read(tokenizer, prompt, self.pipeline.tokenizer_max_length) for tokenizer in self.tokenizers[:2]]
        clip, zeros = agreed(self.name, read), self._zeros
        t5 = padding(prompt, zeros) if zeros else self._read(self.pipeline.tokenizer_3, prompt, T5_TOKENS)
        return JoinedTokens(prompt, clip.words, (clip, t5))

    def _longest(self, prompt: str) -> Tokens:
        """Tokenizes a prompt with the tokenizer that cuts it last."""
        length = self.pipeline.tokenizer_max_length if self.pipeline.text_encoder_3 is None else T5_TOKENS
        return self._read(self.tokenizers[-1], prompt, length)

    def _read(self, tokenizer: Any, prompt: str, length: int) -> Tokens:
        """Tokenizes a prompt with one of the tokenizers."""
        with quiet():
            return tokens_of(tokenizer, prompt, length)

    def attention_layers(self) -> Iterable[Layer]:
        """Returns the attention layers of the transformer; see ``FlowModel.attention_layers``."""
        return sd3_layers(self.network)

    def _check_size(self, size: Sequence[int]) -> None:
        most = self.info.largest
        if most and max(size) > most:
            raise InputError(
                f"height {size[0]} and width {size[1]}: {self.name!r} has positions for at most {most} pixels along "
                "each.",
                parameter="size",
            )

    def call_network(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        control: dict[str, Any] | None,
        skip: Sequence[int] = (),
    ) -> Tensor:
        """Calls a transformer, without the layers ``skip``; see ``PipelineModel.call_network``."""
        text, arguments = conditions[TEXT], control
        text = pad(text, (0, 0, 0, self._zeros))
        if self._zeros == 1:
            count = torch.full((1,), float(T5_TOKENS), device=x.device)
            bias = last_key_counted(count, x, text, self.patch)
            arguments = {**(control or {}), "attention_mask": bias}
        return network(
            x,
            encoder_hidden_states=text,
            pooled_projections=conditions[POOLED],
            timestep=timestep.expand(len(x)),
            joint_attention_kwargs=arguments,
            skip_layers=list(skip) or None,
            return_dict=False,
        )[0]
