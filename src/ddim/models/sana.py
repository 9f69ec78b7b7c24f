"""The adapter for Sana in the diffusers format (Xie et al. 2024, arXiv 2410.10629)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar

from torch import Tensor

from .._utils.errors import InputError
from ..core.path import Node
from ..core.schedule import Clock, Schedule
from ..editing.tokens import Tokens
from .attention.processors import Layer, told
from .attention.sana import sana_layers
from .gemma_text import GemmaTextModel
from .pixel import sides_of


class Sana(GemmaTextModel):
    """A Sana model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    The language model Gemma 2 embeds each prompt in lower case, behind an instruction of several hundred words, the
    default ``complex_human_instruction`` of the pipeline. Of the embedded tokens the network sees the first, the last
    one of the instruction, and those of the prompt. A negative prompt stands behind no instruction.

    The autoencoder is a DC-AE, which has no posterior: the published ones make one position of the latent from 32x32
    pixels. Images have the size that is asked for, any multiple of that; the pipeline does the same with
    ``use_resolution_binning=False``, and by default draws at the nearest of its own sizes, which it then scales.
    """

    family: ClassVar[str] = "Sana text-to-image"
    pipeline_class: ClassVar[str] = "SanaPipeline"
    usual_guidance: ClassVar[float] = 4.5
    usual_steps: ClassVar[int] = 20
    spacing: ClassVar[str] = "linspace"
    clock: ClassVar[Clock | None] = None
    most_tokens: ClassVar[int] = 300
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("SanaTransformer2DModel",),
        "vae": ("AutoencoderDC",),
        "text_encoder": ("Gemma2Model",),
        "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast"),
    }

    @classmethod
    def check_pipeline(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for a network that takes other channels, or the guidance scale as an input."""
        super().check_pipeline(name, pipeline)
        if pipeline.transformer.config.guidance_embeds:
            raise InputError(
                f"the transformer of {name!r} takes the guidance scale as an input (guidance_embeds), as that of Sana "
                "Sprint does, which this version does not support.",
                parameter="model",
            )

    def schedule_of(self, name: str, config: Mapping[str, Any]) -> Schedule:
        """Makes the schedule. Raises InputError for a shift by the image size, which the pipeline does not compute."""
        schedule = super().schedule_of(name, config)
        if not schedule.shift.static:
            raise InputError(
                f"True needs a number that grows with the image size, and the pipeline of {name!r} computes none; use "
                "False.",
                parameter="use_dynamic_shifting",
            )
        return schedule

    @property
    def patch(self) -> int:  # type: ignore[override]
        """Along each side, so many pixels of the latent make one token."""
        return int(self.network.config.patch_size)

    def pixels_per_latent(self) -> int:
        """Returns how many pixels of an image, along each side, belong to one position of the latent."""
        return 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)

    def latent_sides(self) -> tuple[int, int]:
        """Returns the ``sample_size`` of the transformer."""
        return sides_of(self.network.config.sample_size, type(self).__name__)

    def encoded(self, vae: Any, x: Tensor) -> Tensor:
        """Encodes images [N, C, H, W] in [-1, 1], without the scale."""
        return vae.encode(x).latent

    # --- prompts ----------------------------------------------------------------------------------------------------

    def instruction(self) -> str:
        """Returns the default ``complex_human_instruction`` of the pipeline, its lines joined."""
        return self._instruction[0]

    @cached_property
    def _instruction(self) -> tuple[str, int]:
        """The instruction, and the number of its tokens."""
        from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

        lines: Sequence[str] = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        text = "\n".join(lines)
        return text, len(self.tokenizer(text, truncation=False, verbose=False).input_ids)

    def cleaned(self, prompt: str) -> str:
        """Returns a prompt in lower case, without white space at its ends."""
        return prompt.lower().strip()

    def template(self) -> tuple[str, str, int]:
        """Returns the instruction, of whose tokens only the first and the last one reach the network."""
        text, count = self._instruction
        return text, "", count - 2

    def embedded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the last hidden states of the language model."""
        return self.pipeline.text_encoder(ids, attention_mask=mask)[0]

    def encode_one(self, prompt: str) -> Tensor:
        """Encodes one prompt behind the instruction, [L, D]."""
        text, count = self._instruction
        states = self.encode_text(text + self.cleaned(prompt), count + self.most_tokens - 2)
        return states[[0, *range(count - 1, len(states))]]

    def tokens(self, prompt: str) -> Tokens:
        """Returns the tokens that reach the network, and the positions of the words; see ``MaskedTextModel.tokens``."""
        tokens = super().tokens(prompt)
        first = self.tokenizer(self.instruction(), truncation=False, verbose=False).input_ids[0]
        return replace(tokens, row=(first, *tokens.row[1:]))

    def taken_width(self) -> int:
        """Returns ``caption_channels`` of the transformer."""
        return int(self.network.config.caption_channels)

    # --- calls ------------------------------------------------------------------------------------------------------

    def timestep(self, node: Node, x: Tensor) -> Tensor:
        """Returns the timestep of a call as a float32 scalar on the device of x, times the network's scale."""
        return super().timestep(node, x) * self.network.config.timestep_scale

    def call_rows(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        lengths: Sequence[int],
        control: dict[str, Any] | None,
    ) -> Tensor:
        """Calls a transformer; see ``MaskedTextModel.call_rows``."""
        longest = max(lengths)
        with told(sana_layers(network), control):
            return network(
                x,
                encoder_hidden_states=text[:, :longest],
                encoder_attention_mask=None if min(lengths) == longest else self.mask_of(lengths, text),
                timestep=timestep.expand(len(x)),
                return_dict=False,
            )[0]

    def attention_layers(self) -> Iterable[Layer]:
        """Returns the cross-attention layers of the transformer; see ``FlowModel.attention_layers``."""
        return sana_layers(self.network)
