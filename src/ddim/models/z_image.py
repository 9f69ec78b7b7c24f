"""The adapter for Z-Image and Z-Image-Turbo in the diffusers format (Z-Image Team 2025, arXiv 2511.22699)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.guidance import Guidance
from ..core.path import Node
from ..core.schedule import Clock, StaticShift
from .attention.processors import Layer, told
from .attention.z_image import z_image_layers
from .info import ModelInfo
from .masked_text import MaskedTextModel
from .pixel import sides_of

TURBO_SHIFT = 3.0
"""The ``shift`` in the scheduler's config of Z-Image-Turbo; that of Z-Image is 6. No other option tells them apart."""
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


class ZImage(MaskedTextModel):
    """A Z-Image model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    The language model Qwen3 embeds each prompt inside its chat template. The transformer answers minus the velocity,
    and takes 1 - sigma as its timestep.

    The guidance weight w is 1 for the conditional model, as everywhere in this library. The pipeline's
    ``guidance_scale`` is w - 1. The usual weight is 6 (``guidance_scale`` 5), and 1 for Z-Image-Turbo, which is
    distilled and samples without guidance. Two further options of a call of the pipeline, ``cfg_normalization`` and
    ``cfg_truncation``, are off by default there and do not exist here; ``Guidance.interval`` is the general form of the
    second one.
    """

    family: ClassVar[str] = "Z-Image text-to-image"
    pipeline_class: ClassVar[str] = "ZImagePipeline"
    usual_guidance: ClassVar[float] = 6.0
    clock: ClassVar[Clock | None] = "signal"
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("ZImageTransformer2DModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("Qwen3Model",),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    }

    @classmethod
    def check_pipeline(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for a network that takes other channels or patches."""
        super().check_pipeline(name, pipeline)
        network = pipeline.transformer.config
        if cls.patch not in network.all_patch_size or 1 not in network.all_f_patch_size:
            raise InputError(
                f"the transformer of {name!r} takes patches of {network.all_patch_size} positions; this version "
                "supports 2x2.",
                parameter="model",
            )

    def read_info(self, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
        """Collects the facts about the model. The shift of Z-Image-Turbo means 8 steps without guidance."""
        turbo = self.schedule.shift == StaticShift(TURBO_SHIFT)
        info = super().read_info(name, device, dtype)
        return replace(info, guidance=1.0, steps=8) if turbo else info

    def latent_sides(self) -> tuple[int, int]:
        """Returns the autoencoder's ``sample_size`` in positions of the latent, or 1024 pixels if it has none."""
        height, width = sides_of(self.vae.config.get("sample_size") or 1024, type(self).__name__)
        return height // self.pixels_per_latent(), width // self.pixels_per_latent()

    def check_shapes(self) -> None:
        """Checks that the parts fit together; see ``PipelineModel.check_shapes``."""
        try:
            super().check_shapes()
        finally:
            # The transformer keeps the frequencies of its last call, which are now on the meta device.
            self.network.rope_embedder.freqs_cis = None

    def guidance_of(self, guidance_scale: float) -> Guidance:
        """Translates the pipeline's ``guidance_scale``, which is w - 1; 0 and below switch guidance off."""
        return Guidance(1.0 + max(guidance_scale, 0.0))

    # --- prompts ----------------------------------------------------------------------------------------------------

    def template(self) -> tuple[str, str, int]:
        """Returns the parts of the tokenizer's chat template around the prompt; all tokens are embedded."""
        message = [{"role": "user", "content": _MARK}]
        before, _, after = self.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=True
        ).partition(_MARK)
        return before, after, 0

    def encode_one(self, prompt: str) -> Tensor:
        """Encodes one prompt, [L, D]: the second to last hidden states of the language model."""
        # The pipeline writes the chat template into the list that it gets.
        texts, _ = self.pipeline.encode_prompt(
            [prompt], do_classifier_free_guidance=False, max_sequence_length=self.most_tokens
        )
        return texts[0]

    def text_width(self) -> tuple[int, int]:
        """Returns ``hidden_size`` of the language model and ``cap_feat_dim`` of the transformer."""
        return int(self.pipeline.text_encoder.config.hidden_size), int(self.network.config.cap_feat_dim)

    def attention_layers(self) -> Iterable[Layer]:
        """Returns the attention layers of the transformer; see ``FlowModel.attention_layers``."""
        return z_image_layers(self.network, self.patch)

    # --- calls ------------------------------------------------------------------------------------------------------

    def timestep(self, node: Node, x: Tensor) -> Tensor:
        """Returns the timestep of a call as a float32 scalar on the device of x, to the last bit that of the pipeline.

        The pipeline computes (1000 - 1000 sigma) / 1000 in float32, in every dtype of the network.
        """
        label = torch.full((), node.sigma, dtype=torch.float32, device=x.device) * self.schedule.path.levels
        return (1000 - label) / 1000

    def call_rows(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        lengths: Sequence[int],
        control: dict[str, Any] | None,
    ) -> Tensor:
        """Calls a transformer, which takes lists of images and texts; see ``MaskedTextModel.call_rows``."""
        texts = [row[:count] for row, count in zip(text, lengths, strict=True)]
        images = list(x.unsqueeze(2).unbind())
        with told(z_image_layers(network, self.patch), control):
            output = network(images, timestep.expand(len(x)), texts, return_dict=False)[0]
        return -torch.stack(list(output)).squeeze(2)
