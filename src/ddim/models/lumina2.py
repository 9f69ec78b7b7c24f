"""The adapter for Lumina-Image 2.0 in the diffusers format (Qin et al. 2025, arXiv 2503.21758)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.conditioning import Conditioning
from ..core.path import Node
from ..core.schedule import Clock, DynamicShift, Schedule
from .attention.lumina2 import lumina2_layers
from .attention.processors import Layer, told
from .gemma_text import GemmaTextModel
from .info import ModelInfo
from .kept_lengths import KeptLengths

_START = " <Prompt Start> "
"""What the pipeline writes between its system prompt and a prompt."""


class Lumina2(KeptLengths, GemmaTextModel):
    """A Lumina-Image 2.0 model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    The language model Gemma 2 embeds each prompt behind the pipeline's system prompt, and a negative prompt without it.
    The transformer answers minus the velocity, and takes 1 - sigma as its timestep.

    Guidance is not linear, as in the pipeline, whose option ``cfg_normalization`` is on by default: each row of the
    guided output, the W numbers at one height of one channel, gets the length that it has in the conditional output. So
    the weight 1 is the conditional model, but 0 is not exactly the unconditional one. The option ``cfg_trunc_ratio`` is
    off by default there and does not exist here; ``Guidance.interval`` is its general form.

    Where the scheduler shifts its levels by the image size (``use_dynamic_shifting``), the pipeline takes the number of
    the latent's channels for that of its tokens, so that all sizes have one shift. The same is done here.
    """

    family: ClassVar[str] = "Lumina 2 text-to-image"
    pipeline_class: ClassVar[str] = "Lumina2Pipeline"
    part: ClassVar[str] = "row"
    usual_guidance: ClassVar[float] = 4.0
    usual_steps: ClassVar[int] = 30
    clock: ClassVar[Clock | None] = "signal"
    most_tokens: ClassVar[int] = 256
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("Lumina2Transformer2DModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("Gemma2Model",),
        "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast"),
    }

    @classmethod
    def check_pipeline(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for a network that takes other channels, or has no positions for a prompt's tokens."""
        super().check_pipeline(name, pipeline)
        positions = pipeline.transformer.config.axes_lens
        if positions[0] <= cls.most_tokens:
            raise InputError(
                f"the transformer of {name!r} has {positions[0]} positions for text, but a prompt may have "
                f"{cls.most_tokens} tokens.",
                parameter="model",
            )

    @property
    def patch(self) -> int:  # type: ignore[override]
        """Along each side, so many pixels of the latent make one token."""
        return int(self.network.config.patch_size)

    def schedule_of(self, name: str, config: Mapping[str, Any]) -> Schedule:
        """Makes the schedule. A shift by the image size becomes the one shift that the pipeline computes from it."""
        schedule = super().schedule_of(name, config)
        if not isinstance(schedule.shift, DynamicShift):
            return schedule
        mu = schedule.shift.mu(int(self.network.config.in_channels))
        return replace(schedule, shift=replace(schedule.shift, base_shift=mu, max_shift=mu))

    def read_info(self, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
        """Collects the facts about the model."""
        info, positions = super().read_info(name, device, dtype), min(self.network.config.axes_lens[1:])
        return replace(info, largest=int(positions * info.multiple))

    # --- prompts ----------------------------------------------------------------------------------------------------

    def instruction(self) -> str:
        """Returns the pipeline's system prompt, and the mark at which a prompt begins."""
        return f"{self.pipeline.system_prompt}{_START}"

    def embedded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the second to last hidden states of the language model."""
        return self.pipeline.text_encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]

    def encode_one(self, prompt: str) -> Tensor:
        """Encodes one prompt behind the system prompt, [L, D]."""
        return self.encode_text(self.instruction() + prompt, self.most_tokens)

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts; see ``MaskedTextModel.encode_prompt``.

        Raises:
            InputError: an image of this size has more tokens along a side than the network has positions.
        """
        height, width = size or self.picture[1:]
        if max(height, width) > self.info.largest:
            raise InputError(
                f"height {height} and width {width}: {self.name!r} has positions for at most {self.info.largest} "
                "pixels along each.",
                parameter="size",
            )
        return super().encode_prompt(prompts, size)

    def taken_width(self) -> int:
        """Returns ``cap_feat_dim`` of the transformer."""
        return int(self.network.config.cap_feat_dim)

    # --- calls ------------------------------------------------------------------------------------------------------

    def timestep(self, node: Node, x: Tensor) -> Tensor:
        """Returns the timestep of a call as a float32 scalar on the device of x, to the last bit that of the pipeline.

        The pipeline computes 1 - 1000 sigma / 1000 in float32, in every dtype of the network.
        """
        levels = self.schedule.path.levels
        label = torch.full((), node.sigma, dtype=torch.float32, device=x.device) * levels
        return 1 - label / levels

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
        mask = self.mask_of(lengths, text)
        if mask.is_meta:  # the transformer asks for the numbers of tokens, which a tensor without data cannot tell
            mask.sum = lambda dim: torch.tensor(lengths)  # type: ignore[method-assign]
        call = None if control is None else {**control, "lengths": lengths}
        with told(lumina2_layers(network), call):
            output = network(
                hidden_states=x,
                timestep=timestep.expand(len(x)),
                encoder_hidden_states=text[:, : max(lengths)],
                encoder_attention_mask=mask,
                return_dict=False,
            )[0]
        return -output

    def attention_layers(self) -> Iterable[Layer]:
        """Returns the attention layers of the transformer; see ``FlowModel.attention_layers``."""
        return lumina2_layers(self.network)

    # --- guidance ---------------------------------------------------------------------------------------------------
