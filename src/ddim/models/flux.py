"""The adapters for FLUX.1 (dev, schnell) and FLUX.1 Kontext in the diffusers format (Black Forest Labs 2024 and 2025,
arXiv 2506.15742).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError
from .._utils.silence import quiet
from ..core.conditioning import EMBEDDED, POOLED, REFERENCE, TEXT, Conditioning
from ..editing.tokens import Tokens, tokens_of
from .attention.mmdit import flux_layers
from .attention.processors import Layer
from .flow import PackedFlowModel, packed, unpacked
from .info import ModelInfo
from .reference import ReferenceModel
from .tokens import longest_prompt, warn_if_cut

USUAL_SCALE = 3.5
"""The guidance scale that the pipeline of FLUX.1-dev gives its network by default, and at which a de-distilled model is
sampled."""


class Flux(PackedFlowModel):
    """A FLUX.1 model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    A T5 encoder embeds the words of each prompt, and a CLIP encoder the whole of it. FLUX.1-dev is guidance-distilled:
    its network takes a guidance scale as an input, ``Guidance.embedded``, besides which classifier-free guidance is
    possible; the unconditional branch is the encoded negative prompt, by default the empty one. FLUX.1-schnell takes
    neither. A de-distilled FLUX.1-dev takes no scale, and is sampled with classifier-free guidance. The three are told
    apart by ``guidance_embeds`` in the transformer's config and, without it, by ``use_dynamic_shifting`` in the
    scheduler's, which FLUX.1-schnell does not have.
    """

    family: ClassVar[str] = "FLUX.1 text-to-image"
    pipeline_class: ClassVar[str] = "FluxPipeline"
    assumed: ClassVar[str] = "it is read as a FluxPipeline, and would take no reference picture if it is FLUX.1 Kontext"
    usual_guidance: ClassVar[float] = 1.0
    conditions: ClassVar[tuple[str, ...]] = (TEXT, POOLED)
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("FluxTransformer2DModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("T5EncoderModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_2": ("T5TokenizerFast", "T5Tokenizer"),
    }

    needs: ClassVar[str] = "give a text-to-image model. Fill and Control models need another image in every call."

    # --- facts ------------------------------------------------------------------------------------------------------

    @property
    def distilled(self) -> bool:
        """Whether the network takes a guidance scale as an input: FLUX.1-dev and Kontext do, schnell does not."""
        return bool(self.network.config.guidance_embeds)

    @property
    def few_step(self) -> bool:
        """Whether this is FLUX.1-schnell, distilled to a few steps without guidance."""
        return not self.distilled and not self.pipeline.scheduler.config.get("use_dynamic_shifting", False)

    @property
    def text_tokens(self) -> int:
        """The number of tokens that the T5 encoder is given: 512, and 256 for schnell."""
        return 256 if self.few_step else 512

    def read_info(self, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
        """Collects the facts about the model."""
        info = super().read_info(name, device, dtype)
        if self.distilled:
            return replace(info, embedded=USUAL_SCALE, guidance_kinds=frozenset({"cfg", "embedded"}))
        if self.few_step:
            return replace(info, guidance_kinds=frozenset[str](), steps=4)
        return replace(info, guidance=USUAL_SCALE)

    def longest_prompt(self) -> int:
        """Returns the number of tokens that the T5 encoder takes, without the end token.

        Raises:
            InputError: the CLIP tokenizer has a limit that its text encoder does not take.
        """
        longest_prompt(self.tokenizer, int(self.encoders[0].config.max_position_embeddings))
        return self.text_tokens - 1

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each condition for one prompt, from the configs of the text encoders.

        Raises:
            InputError: the transformer takes embeddings of another size, or a tokenizer has more tokens than its text
                encoder.
        """
        clip, t5 = (encoder.config for encoder in self.encoders)
        takes, pooled = self.network.config.joint_attention_dim, self.network.config.pooled_projection_dim
        if (t5.d_model, clip.hidden_size) != (takes, pooled):
            raise InputError(
                f"the text encoders of {self.name!r} make embeddings of {t5.d_model} (T5) and {clip.hidden_size} "
                f"(CLIP) numbers, but its transformer takes {takes} and {pooled}.",
                parameter="model",
            )
        shapes = {TEXT: (1, self.text_tokens, takes), POOLED: (1, pooled)}
        return {**shapes, EMBEDDED: (1,)} if self.distilled else shapes

    # --- calls ------------------------------------------------------------------------------------------------------

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts to ``text`` [N, L, D] and ``pooled`` [N, P], and ``guidance`` [N] for a distilled network.

        ``guidance`` is the usual scale, ``ModelInfo.embedded``. Warns (DDIMWarning) if the T5 encoder cuts a prompt.
        """
        for prompt in prompts:  # CLIP, which sums up a prompt, cuts sooner
            warn_if_cut(self.tokens(prompt), self.tokenizers[1], self.name)
        with torch.no_grad(), quiet():
            text, pooled, _ = self.pipeline.encode_prompt(list(prompts), max_sequence_length=self.text_tokens)
        cond = Conditioning({TEXT: text.to(self.state_dtype), POOLED: pooled.to(self.state_dtype)})
        return self.with_usual_scale(cond, len(prompts))

    def tokens(self, prompt: str) -> Tokens:
        """Returns the tokens that the T5 encoder gets, and the positions of the words among them.

        CLIP sums up the prompt in one vector, so that its tokens have no part in attention.
        """
        tokenizer = self.tokenizers[1]
        with quiet():
            convert = partial(self.pipeline.maybe_convert_prompt, tokenizer=tokenizer)
            return tokens_of(tokenizer, prompt, self.text_tokens, convert)

    def attention_layers(self) -> Iterable[Layer]:
        """Returns the attention layers of the transformer; see ``FlowModel.attention_layers``."""
        return flux_layers(self.network, self.patch, reference=REFERENCE in self.info.optional_conditions)

    def call_network(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        control: dict[str, Any] | None,
    ) -> Tensor:
        """Calls a transformer with the latents packed into tokens; see ``PipelineModel.call_network``.

        The tokens of a reference follow those of the image, and are numbered by the first of the three position ids.
        """
        (count, _, height, width), text = x.shape, conditions[TEXT]
        pictures = [x] if REFERENCE not in conditions else [x, conditions[REFERENCE]]
        tokens = torch.cat([packed(picture) for picture in pictures], 1)
        positions = [position_ids(p.shape[2] // 2, p.shape[3] // 2, k, x) for k, p in enumerate(pictures)]
        output = network(
            hidden_states=tokens,
            timestep=timestep.expand(count),
            guidance=conditions.get(EMBEDDED),
            pooled_projections=conditions[POOLED],
            encoder_hidden_states=text,
            txt_ids=x.new_zeros(text.shape[1], 3),
            img_ids=torch.cat(positions),
            joint_attention_kwargs=control,
            return_dict=False,
        )[0]
        return unpacked(output[:, : (height // 2) * (width // 2)], height, width)


class FluxKontext(ReferenceModel, Flux):
    """A FLUX.1 Kontext model, whose network can look at a reference picture; see ``ReferenceModel``.

    Without a reference the model draws from the prompt alone, as its pipeline does without an image. The pipeline of
    diffusers scales a reference to one of the sizes that the model was trained on, of about 1024x1024 pixels; choose
    such a size for the best results.
    """

    family: ClassVar[str] = "FLUX.1 Kontext"
    pipeline_class: ClassVar[str] = "FluxKontextPipeline"


def position_ids(rows: int, columns: int, picture: int, like: Tensor) -> Tensor:
    """Returns the position ids of an image's tokens, [rows * columns, 3]: (picture, row, column).

    Args:
        rows, columns: the number of tokens along each side.
        picture: 0 for the image that is drawn, 1 for the reference.
        like: a tensor that has the dtype and device of the result; the pipeline has them in the network's dtype.
    """
    ids = like.new_zeros(rows, columns, 3)
    ids[..., 0] = picture
    ids[..., 1] = torch.arange(rows, device=like.device).to(like.dtype)[:, None]
    ids[..., 2] = torch.arange(columns, device=like.device).to(like.dtype)[None, :]
    return ids.reshape(rows * columns, 3)
