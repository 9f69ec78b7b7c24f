"""The adapter for FLUX.2 klein in the diffusers format (Black Forest Labs 2026, bfl.ai/blog/flux2-klein)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError
from .._utils.silence import quiet
from ..core.conditioning import REFERENCE, TEXT, Conditioning
from ..core.schedule import DynamicShift, Flux2Shift, Schedule
from ..editing.tokens import Tokens, filled, tokens_within
from .attention.mmdit import flux2_layers
from .attention.processors import Layer
from .flow import PackedFlowModel, packed, unpacked
from .info import ModelInfo
from .reference import ReferenceModel
from .tokens import warn_if_cut

TEXT_LAYERS = (9, 18, 27)
"""The layers of the language model whose hidden states embed a prompt, as in the pipeline."""
REFERENCE_TIME = 10
"""The first position id of a reference's tokens; those of the image that is drawn have 0."""
_TOKENS = 512
"""The number of tokens that the language model is given, the default ``max_sequence_length`` of the pipeline."""
_DISTILLED = "is_distilled"
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


class Flux2Klein(ReferenceModel, PackedFlowModel):
    """A FLUX.2 klein model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    The language model Qwen3 embeds each prompt inside its chat template: the hidden states of three of its layers stand
    side by side, those of the padding too. The distilled model is sampled in 4 steps and takes no guidance; its
    pipeline says so by ``is_distilled`` in its config, which ``model_index.json`` stores. The base model is sampled
    with classifier-free guidance. Its unconditional branch is the encoded negative prompt, by default the empty one;
    the pipeline of diffusers takes a negative prompt only as an embedding.

    Latents are [N, C, h, w] here. Each of the 4C numbers of a token, 2x2 positions of the autoencoder's output, is
    shifted and scaled by the statistics of the autoencoder's batch normalization.

    The network can look at a reference picture; see ``ReferenceModel``. The pipeline of diffusers takes several, and
    scales one of more than 1024x1024 pixels down to that area.
    """

    family: ClassVar[str] = "FLUX.2 klein"
    pipeline_class: ClassVar[str] = "Flux2KleinPipeline"
    untold: ClassVar[str] = "whether the model is distilled to a few steps"
    usual_guidance: ClassVar[float] = 4.0
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("Flux2Transformer2DModel",),
        "vae": ("AutoencoderKLFlux2",),
        "text_encoder": ("Qwen3ForCausalLM",),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    }

    @classmethod
    def check_pipeline(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for networks of other shapes, or a language model with too few layers."""
        super().check_pipeline(name, pipeline)
        if tuple(patch := pipeline.vae.config.patch_size) != (cls.patch, cls.patch):
            raise InputError(
                f"the autoencoder of {name!r} normalizes patches of {patch} positions; 2x2 is supported.",
                parameter="model",
            )
        if (layers := pipeline.text_encoder.config.num_hidden_layers) < max(TEXT_LAYERS):
            raise InputError(
                f"the text encoder of {name!r} has {layers} layers, but the prompt is embedded by layer "
                f"{max(TEXT_LAYERS)}.",
                parameter="model",
            )

    @classmethod
    def pipeline_options(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options of a Flux2KleinPipeline: ``is_distilled`` from the index."""
        distilled = index.get(_DISTILLED, False)
        if not isinstance(distilled, bool):
            raise InputError(
                f"{_DISTILLED} in its index is {distilled!r}; it must be true or false.", parameter="model"
            )
        return {_DISTILLED: distilled}

    def schedule_of(self, name: str, config: Mapping[str, Any]) -> Schedule:
        """Makes the schedule, whose dynamic shift is FLUX.2's. Raises InputError for another scheduler."""
        schedule = super().schedule_of(name, config)
        if not isinstance(shift := schedule.shift, DynamicShift):
            return schedule
        if shift.kind != "exponential":
            raise InputError(
                f"the scheduler of {name!r} has time_shift_type {shift.kind!r}; FLUX.2 needs 'exponential'.",
                parameter="model",
            )
        return replace(schedule, shift=Flux2Shift(terminal=shift.terminal))

    def read_info(self, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
        """Collects the facts about the model."""
        info = super().read_info(name, device, dtype)
        if self.distilled:
            return replace(info, guidance=1.0, guidance_kinds=frozenset[str](), steps=4)
        return info

    @property
    def distilled(self) -> bool:
        """Whether the model is distilled to a few steps without guidance."""
        return bool(self.pipeline.config.get(_DISTILLED, False))

    # --- latents ----------------------------------------------------------------------------------------------------

    def latent_statistics(self, name: str, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Returns the reciprocal standard deviations and the means of a token's numbers, [1, 1, 4C].

        Raises:
            InputError: a statistic is not finite, or a variance is not above 0.
        """
        norm, eps = self.vae.bn, float(self.vae.config.batch_norm_eps)
        mean, variance = (t.detach().to(like).view(1, 1, -1) for t in (norm.running_mean, norm.running_var))
        variance = variance + eps
        if not bool(torch.isfinite(mean).all() & torch.isfinite(variance).all() & (variance > 0).all()):
            raise InputError(
                f"the batch normalization of {name!r}'s autoencoder has means that are not finite, or variances that "
                "are not above 0; its file is damaged.",
                parameter="model",
            )
        return variance.rsqrt(), mean

    def to_code(self, encoded: Tensor) -> Tensor:
        """Shifts and scales the numbers of each token of the encoder's output, [N, C, h, w]."""
        return unpacked(super().to_code(packed(encoded)), *encoded.shape[2:])

    def from_code(self, code: Tensor) -> Tensor:
        """Inverts ``to_code``."""
        return unpacked(super().from_code(packed(code)), *code.shape[2:])

    # --- prompts ----------------------------------------------------------------------------------------------------

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of ``text`` for one prompt.

        Raises:
            InputError: the transformer takes embeddings of another size than the language model makes.
        """
        taken = self.network.config.joint_attention_dim
        self.check_width(len(TEXT_LAYERS) * self.pipeline.text_encoder.config.hidden_size, taken)
        return {TEXT: (1, _TOKENS, taken)}

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts to ``text`` [N, L, D]. Warns (DDIMWarning) if a prompt is cut."""
        for prompt in prompts:
            warn_if_cut(self.tokens(prompt), self.tokenizer, self.name)
        with torch.no_grad(), quiet():
            text, _ = self.pipeline.encode_prompt(
                list(prompts), max_sequence_length=_TOKENS, text_encoder_out_layers=TEXT_LAYERS
            )
        return Conditioning({TEXT: text.to(self.state_dtype)})

    def template(self) -> tuple[str, str]:
        """Returns the parts of the tokenizer's chat template around the prompt."""
        message = [{"role": "user", "content": _MARK}]
        before, _, after = self.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=False
        ).partition(_MARK)
        return before, after

    def tokens(self, prompt: str) -> Tokens:
        """Returns the tokens that are embedded, with template and padding, and the positions of the words."""
        with quiet():
            return filled(
                tokens_within(self.tokenizer, prompt, *self.template(), length=_TOKENS), self.tokenizer, _TOKENS
            )

    def longest_prompt(self) -> int:
        """Returns the largest number of tokens in a prompt that leaves the template whole."""
        return _TOKENS - sum(len(self.tokenizer(text, verbose=False).input_ids) for text in self.template())

    # --- calls ------------------------------------------------------------------------------------------------------

    def attention_layers(self) -> Iterable[Layer]:
        """Returns the attention layers of the transformer; see ``FlowModel.attention_layers``."""
        return flux2_layers(self.network, self.patch)

    def call_network(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        control: dict[str, Any] | None,
    ) -> Tensor:
        """Calls a transformer with the latents packed into tokens; see ``PipelineModel.call_network``.

        The tokens of a reference follow those of the image.
        """
        (count, _, height, width), text = x.shape, conditions[TEXT]
        pictures = {0: x}
        if REFERENCE in conditions:
            pictures[REFERENCE_TIME] = conditions[REFERENCE]
        output = network(
            hidden_states=torch.cat([packed(picture) for picture in pictures.values()], 1),
            timestep=timestep.expand(count),
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=text_ids(text.shape[1], x.device),
            img_ids=torch.cat([image_ids(p.shape[2] // 2, p.shape[3] // 2, t, x.device) for t, p in pictures.items()]),
            joint_attention_kwargs=control,
            return_dict=False,
        )[0]
        return unpacked(output[:, : (height // 2) * (width // 2)], height, width)


def text_ids(length: int, device: torch.device) -> Tensor:
    """Returns the position ids of a text's tokens, [length, 4]: (0, 0, 0, place)."""
    ids = torch.zeros(length, 4, dtype=torch.int64, device=device)
    ids[:, 3] = torch.arange(length, device=device)
    return ids


def image_ids(rows: int, columns: int, time: int, device: torch.device) -> Tensor:
    """Returns the position ids of a picture's tokens, [rows * columns, 4]: (time, row, column, 0).

    Args:
        rows, columns: the number of tokens along each side.
        time: 0 for the image that is drawn, ``REFERENCE_TIME`` for the reference.
        device: the device of the result.
    """
    ids = torch.zeros(rows, columns, 4, dtype=torch.int64, device=device)
    ids[..., 0] = time
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None, :]
    return ids.reshape(rows * columns, 4)
